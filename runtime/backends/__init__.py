"""Where a graph can run: one file per runtime, what this machine has, and the ladder that chooses among them."""
