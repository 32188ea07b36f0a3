"""The Python API: what `import FewShotSegLib` offers besides the data classes, one module per concern."""
