"""``python -m flamest.agent`` is the command ``flamest-agent``."""

from .cli.main import main

if __name__ == "__main__":
    main()
