"""Sources of weights: hub, folder, checkpoint, mini-world, seed."""
