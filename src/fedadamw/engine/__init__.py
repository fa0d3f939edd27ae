"""Engines: they run any algorithm over clients, batches and rounds."""
