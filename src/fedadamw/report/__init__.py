"""Reports: they read what a run left in its folder, and draw it."""
