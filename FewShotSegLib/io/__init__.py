"""Reading and writing: images, labelmaps, exemplars, prompts, adapters, jobs, and which files a folder holds."""
