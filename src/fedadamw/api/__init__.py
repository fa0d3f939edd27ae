"""The simulator from Python: `simulate` for any model and data, `run` and `compare` for recipes."""
