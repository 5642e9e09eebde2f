"""Clips to features: files, labels, the feature store."""
