"""A federation on one machine (test bed, demo, certificates), and SuperLink and SuperNode as services."""
