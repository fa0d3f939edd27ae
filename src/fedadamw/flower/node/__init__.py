"""A node of the federation: one client that trains on its own data. Imports nothing, so the client app stays light."""
