"""Optimizing: the training loop, losses, prompted training, patches, estimates by leaving exemplars out."""
