"""``python tests/upgrades/pack_state.py STATE``: packs what make_state.py made into the committed archive.

Left out: the networks of the bundle, whose manifest stays; locks and files of SQLite that hold nothing.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ARCHIVE = Path(__file__).with_name("state-0.2.0.zip")
MANIFEST = "bundle.json"


def main(state: Path) -> None:
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for path in sorted(state.rglob("*")):
            name = path.relative_to(state)
            if path.is_file() and kept(name, path):
                packed.writestr(zipfile.ZipInfo(str(name)), path.read_bytes(), zipfile.ZIP_DEFLATED)
    sys.stdout.write(f"{ARCHIVE}: {ARCHIVE.stat().st_size} bytes\n")


def kept(name: Path, path: Path) -> bool:
    if name.parts[0] == "bundle":
        return name.name == MANIFEST
    return not path.name.endswith(("-shm", ".lock", "mine.npz")) and path.name not in ("lock", "health")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
