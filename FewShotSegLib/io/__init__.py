"""Reading and writing: images, labelmaps, exemplars, prompts, adapters, jobs, and the contents of folders."""
