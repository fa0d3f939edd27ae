"""A whole federation on one machine: test bed, demo, certificates."""
