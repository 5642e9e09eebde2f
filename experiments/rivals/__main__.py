"""``python -m flamest.experiments.rivals kd|actionclip``."""

from .cli import main

if __name__ == "__main__":
    main()
