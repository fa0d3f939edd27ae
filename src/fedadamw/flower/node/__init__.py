"""A node of a federation: it trains the clients that it stands for, on its own data."""
