"""``python -m flamest.export`` is the command ``flamest-export``."""

from .cli import main

if __name__ == "__main__":
    main()
