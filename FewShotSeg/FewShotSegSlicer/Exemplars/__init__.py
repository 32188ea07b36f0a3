"""Exemplars that live in the scene."""
