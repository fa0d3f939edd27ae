"""The optimizer and its server, for other training loops."""
