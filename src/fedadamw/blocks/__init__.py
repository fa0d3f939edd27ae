"""Hessian blocks: which coordinates of a model share one second moment."""
