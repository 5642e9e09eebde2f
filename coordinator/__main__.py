"""``python -m flamest.coordinator`` is the command ``flamest-coordinator``."""

from .cli.main import main

if __name__ == "__main__":
    main()
