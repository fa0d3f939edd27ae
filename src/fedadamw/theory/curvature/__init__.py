"""Curvature of the loss at a run's weights: eigenvalues, and how much of it blocks hold."""
