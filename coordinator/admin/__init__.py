"""The operator's view: authority, history, doctor."""
