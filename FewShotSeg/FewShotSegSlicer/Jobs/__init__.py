"""What the user asks of an adaptation or a segmentation, as jobs, and what these leave: adapters, checkpoints."""
