"""Every setting, and how recipes, files and overrides become one experiment."""
