"""Annotation files of other tools, read into and written from ``labels.csv``."""
