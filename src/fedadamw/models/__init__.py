"""Models from transformers, by name."""
