"""Timing and memory of a bundle on every backend, and the check of a GPU machine."""
