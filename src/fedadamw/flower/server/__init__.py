"""The server of a federation: it asks clients, checks what they send, and averages it."""
