"""The demo, and the paper's tables and plots."""
