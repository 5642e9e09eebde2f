"""Time per layer, per operator and per stage, on every backend."""
