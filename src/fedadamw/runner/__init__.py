"""Runs one experiment: processes, folder, progress, report."""
