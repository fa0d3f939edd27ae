"""One run: its process, folder, progress and end."""
