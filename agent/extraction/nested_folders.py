"""Folders of videos inside each other, extracted into one store: neither takes the labels that the other gave.

``flamest-agent extract --videos videos/ward`` meets files that the store knows from ``videos``, where they are listed
otherwise. The store keeps names relative to the folder, so that videos can be moved; which folder a name counts from
follows from the name itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .failures import file_of_name
from .labels_table import LABELS_FILE


def is_from_around(stored: str, name: str, root: Path) -> bool:
    """True where ``stored`` is the file ``name`` of the folder ``root`` as it is called from a folder around that."""
    file = file_of_name(stored)
    above = PurePosixPath(file.removesuffix(f"/{name}")).parts
    return file.endswith(f"/{name}") and root.parts[-len(above) :] == above


def is_of_another_folder(stored: str, names: Iterable[str], root: Path) -> bool:
    """True where a clip that is stored as ``stored`` was listed by a folder around ``root``, or by one inside.

    ``names``: those that its file has in ``root``. A folder inside has a labels.csv of its own; without one the file
    has been moved there.
    """
    return any(is_from_around(stored, name, root) or _is_from_inside(stored, name, root) for name in names)


def _is_from_inside(stored: str, name: str, root: Path) -> bool:
    file = file_of_name(stored)
    return name.endswith(f"/{file}") and os.path.lexists(root / name.removesuffix(f"/{file}") / LABELS_FILE)
