"""Build a simulation from settings: data, partition, model, task and algorithm."""
