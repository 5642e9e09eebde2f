"""The demo, the simulation, the mini-world, and the paper's tables and figures."""
