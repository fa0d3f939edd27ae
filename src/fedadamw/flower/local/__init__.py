"""A whole federation on one machine: test bed, demo, certificates; SuperLink and SuperNode as services."""
