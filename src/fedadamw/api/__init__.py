"""The Python API: `simulate` any model and data, `run` and `compare` recipes, check an algorithm of one's own."""
