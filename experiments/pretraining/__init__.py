"""Training of the mini-world's small networks."""
