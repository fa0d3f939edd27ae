"""Trained models: load, evaluate, export."""
