"""Data model as frozen dataclasses: volumes, prompts, exemplars, adapters, jobs, recipes. No file access."""
