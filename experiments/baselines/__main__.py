"""``python -m flamest.experiments.baselines kd|actionclip``."""

from .cli import main

if __name__ == "__main__":
    main()
