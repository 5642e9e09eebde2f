"""The mini-world: rendered video of five objects doing five motions."""
