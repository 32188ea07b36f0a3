"""Geometry and intensities of volumes: slices and their network squares, grids, reindexing, anatomy images."""
