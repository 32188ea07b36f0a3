"""ASAP: a bandit selects the auxiliary data set to train with in each turn (Yang et al.)."""
