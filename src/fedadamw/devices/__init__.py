"""Simulated devices: how fast clients are, and when they are there."""
