"""Runtimes that can run a graph: one file per runtime, this machine's facts, and the ranking that chooses."""
