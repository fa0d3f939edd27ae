"""LoRA (arXiv 2106.09685): adapters of a model's layers, and what their means are."""
