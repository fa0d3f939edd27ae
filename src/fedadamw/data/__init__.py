"""Where samples come from, who holds them, and how they become batches."""
