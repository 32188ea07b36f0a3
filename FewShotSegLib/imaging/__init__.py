"""Geometry and intensities of volumes: slices as network input squares, grids, reindexing, anatomy images."""
