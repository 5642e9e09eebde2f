"""The commands of ``flamest-coordinator``."""
