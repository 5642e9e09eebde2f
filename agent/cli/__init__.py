"""The commands of ``flamest-agent``."""
