"""Comparing segmentations with references: metrics, pairing of files, tables."""
