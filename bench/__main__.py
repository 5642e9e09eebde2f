"""``python -m bench`` runs all benchmarks; ``python -m bench training`` runs one."""

from __future__ import annotations

import importlib
import json
import sys

BENCHMARKS = ("training", "paper_run", "attacks", "claims", "inversion", "policies")


def main() -> None:
    for name in sys.argv[1:] or BENCHMARKS:
        if name not in BENCHMARKS:
            sys.exit(f"unknown benchmark '{name}'; known: {', '.join(BENCHMARKS)}")
        from .record import store_result

        figures = importlib.import_module(f"bench.{name}").measure()
        print(json.dumps(figures, indent=2))
        print(f"stored in {store_result(name, figures)}")


if __name__ == "__main__":
    main()
