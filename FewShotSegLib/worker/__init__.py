"""Worker processes: the interactive session, batches, and their client."""
