"""The optimizer and its server, for a training loop of your own."""
