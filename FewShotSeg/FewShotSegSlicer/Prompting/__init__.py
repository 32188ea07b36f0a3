"""Clicks and boxes on slices, and the masks that answer them."""
