"""Training: the optimization loop, losses, prompted training, patches, leave-one-out estimates."""
