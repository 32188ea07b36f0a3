"""Running a job from its description to its files: load, seed, adapt or segment or evaluate, save, record."""
