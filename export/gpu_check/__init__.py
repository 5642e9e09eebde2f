"""One command for a machine with an NVIDIA GPU: every claim about it proved or refuted, and one report."""
