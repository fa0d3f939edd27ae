"""The server of a federation: sends requests to clients, checks their uploads and averages them."""
