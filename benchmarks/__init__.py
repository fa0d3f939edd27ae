"""Measurements and evidence that users can repeat, and the pages that are made of them."""
