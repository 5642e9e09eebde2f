"""Administration: who takes part, the state of a run, its models and their cost, checks."""
