"""Inference: predictors, whole volumes, support sets, sliding windows, quality flags."""
