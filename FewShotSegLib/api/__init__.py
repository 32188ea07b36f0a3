"""The Python API: what `import FewShotSegLib` offers beside the data classes, a module per concern."""
