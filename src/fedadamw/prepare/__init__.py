"""From settings to a simulation: data, partition, model, task and algorithm."""
