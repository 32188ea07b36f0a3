"""The MRML scene: volumes, segmentations, geometry, results."""
