"""Differential privacy: what is spent, and how much noise a target needs."""
