"""Aggregation strategies."""
