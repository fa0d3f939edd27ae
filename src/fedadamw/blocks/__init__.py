"""Hessian blocks: groups of a model's coordinates that share one second moment."""
