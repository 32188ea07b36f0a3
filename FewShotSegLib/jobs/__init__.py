"""Running a job, from its description to its output files: load, seed, adapt or segment or evaluate, save, record."""
