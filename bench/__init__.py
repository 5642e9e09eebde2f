"""Benchmarks: ``python -m bench NAME``. Results are stored in bench/results/."""
