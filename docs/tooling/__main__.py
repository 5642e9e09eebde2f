"""Write the generated parts of docs/reference: ``python -m flamest.docs.tooling``; with ``--check`` only compare."""

from __future__ import annotations

import sys

from .pages import stale_pages, write_pages


def main() -> int:
    """Return 0, or 1 with ``--check`` when a page is not what the code says."""
    if "--check" in sys.argv[1:]:
        for page in (stale := stale_pages()):
            sys.stderr.write(f"docs/{page} is stale: make reference\n")
        return 1 if stale else 0
    for page in write_pages():
        sys.stdout.write(f"docs/{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
