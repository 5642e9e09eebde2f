"""The Python API: the names that ``import flamest as fl`` offers, one file per theme (docs/guides/python-api.md)."""
