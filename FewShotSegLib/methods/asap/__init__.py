"""ASAP: a bandit picks the auxiliary data set to train with at each turn (Yang et al.)."""
