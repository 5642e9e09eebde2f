"""The paper's tables and figures: the printed numbers, our runs, and their comparison."""
