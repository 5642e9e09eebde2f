"""``python -m bench`` measures everything; ``python -m bench training`` one thing."""

from __future__ import annotations

import importlib
import json
import sys

MEASUREMENTS = ("training", "paper_run", "attacks", "inversion", "policies")


def main() -> None:
    for name in sys.argv[1:] or MEASUREMENTS:
        if name not in MEASUREMENTS:
            sys.exit(f"unknown measurement '{name}'; known: {', '.join(MEASUREMENTS)}")
        from .record import keep

        figures = importlib.import_module(f"bench.{name}").measure()
        print(json.dumps(figures, indent=2))
        print(f"kept in {keep(name, figures)}")


if __name__ == "__main__":
    main()
