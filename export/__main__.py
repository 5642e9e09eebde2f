"""``python -m flamest.export`` is the command ``flamest-export``."""

from .cli.main import main

if __name__ == "__main__":
    main()
