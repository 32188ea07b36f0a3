"""Benchmarks against the alternatives a user would choose: `fewshotseg benchmark accuracy|speed`."""
