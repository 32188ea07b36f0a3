"""Long work in worker processes, and the files it needs and leaves."""
