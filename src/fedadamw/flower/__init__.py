"""The same algorithms on Flower: real nodes, real networks. README.md here says which file to read first."""
