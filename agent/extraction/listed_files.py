"""Find the file that a row of labels.csv names: as written, else with slashes, or in another case if that is unique.

Tables come from Windows, where a path has backslashes and names in any case are one file, and from macOS, which writes
accents in another Unicode form.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

MAX_PARTS = 64  # of a path that is searched for


class ListedFiles:
    """The files of one folder; a folder's names are read once, when a row needs them."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder, self._root = folder, root
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, written: str) -> tuple[Path, str]:
        """Return the path that a row means, and a sentence where it is not the path as written.

        Where no file matches, the path as written is returned: its problem is reported as any other file's.
        """
        exact = self._folder / written
        if os.path.lexists(exact):
            return exact, ""
        slashes = written.replace("\\", "/")
        path = self._folder / slashes
        if slashes != written and os.path.lexists(path):
            return path, f"{written} is read as {slashes}"
        parts = [part for part in slashes.split("/") if part not in ("", ".")]
        found = self._other_case(self._folder, parts) if len(parts) <= MAX_PARTS else []
        if len(found) == 1:
            name = found[0].relative_to(self._folder).as_posix()
            return found[0], f"{written} is not there; {name} is used, the only file of that name in another case"
        if found:
            names = " and ".join(sorted(each.relative_to(self._folder).as_posix() for each in found)[:3])
            return exact, f"{written} is not there, and {names} differ from it in case alone: write one of them"
        return exact, ""

    def _other_case(self, here: Path, parts: list[str]) -> list[Path]:
        """Return the files whose path is ``parts`` but for case and Unicode form; links to folders are not followed."""
        if not parts:
            return [here]
        if here != self._folder and here.is_symlink():
            return []
        names = self._folded(here).get(folded(parts[0]), [])
        return [path for name in names for path in self._other_case(here / name, parts[1:])]

    def _folded(self, here: Path) -> dict[str, list[str]]:
        """Return the names in a folder by their folded form; none of one that is elsewhere or cannot be read."""
        if here not in self._names:
            names: dict[str, list[str]] = {}
            try:
                inside = here.resolve(strict=True).is_relative_to(self._root)
                for name in os.listdir(here) if inside else ():
                    names.setdefault(folded(name), []).append(name)
            except (OSError, RuntimeError):
                names = {}
            self._names[here] = names
        return self._names[here]


def folded(path: str) -> str:
    """Return a form that is the same for paths which a row may name instead of each other."""
    name = path.replace("\\", "/")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
