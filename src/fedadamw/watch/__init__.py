"""A run or study in the browser while it goes on."""
