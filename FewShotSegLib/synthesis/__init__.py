"""Synthesis of training samples from a few exemplar slices: sampling, pasting, background inpainting."""
