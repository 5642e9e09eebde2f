"""The paper's tables and figures: its numbers as data, the runs behind ours, and the two side by side."""
