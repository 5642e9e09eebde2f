"""``python -m flamest.agent`` is the command ``flamest-agent``."""

from .cli import main

if __name__ == "__main__":
    main()
