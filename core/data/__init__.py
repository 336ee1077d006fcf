"""Data sets and local folders, as batches."""
