"""Reports: they read a run's records, nothing else."""
