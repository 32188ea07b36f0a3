"""What is worked on, as frozen dataclasses: volumes, prompts, exemplars, adapters, jobs, recipes. Opens no file."""
