"""Functions for Python programs: what `import fedadamw` offers besides the optimizer."""
