"""Precision of a bundle's graphs: half precision, int8, and the dtype histogram that proves it."""
