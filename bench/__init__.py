"""What is measured, against what. ``python -m bench NAME``; results are kept in bench/results/."""
