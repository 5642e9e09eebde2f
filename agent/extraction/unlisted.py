"""Clips in the store that the folder lists no more: they keep their features and lose their label."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from ...base.errors import DataError
from ...base.files import Stopped
from ...runtime.video.decoder import DecodeLimits
from .clips import ClipFolder
from .contents import Contents, content_hash
from .failures import file_of_name
from .listed_files import folded
from .nested_folders import is_of_another_folder
from .store import FeatureStore


def take_labels_of_unlisted(
    store: FeatureStore, folder: ClipFolder, contents: Contents, limits: DecodeLimits, stop: Callable[[], bool]
) -> None:
    """Take the labels of stored clips that the folder lists no more. To be called when all its clips were met.

    They are clips of a file that is listed otherwise now, and of one that is still in the folder and in no row of its
    labels.csv. Clips that were last seen under a name that is listed and could not be looked at keep theirs, as do
    those that a folder around this one or inside it lists; so do all where a folder inside or a row could not be read.
    """
    if not folder.whole:
        return
    unknown = {folded(name) for name in contents.unidentified.union(problem.name for problem in folder.problems)}
    for file_sha256, identities in contents.listed.items():

        def keeps(stored: str, names: Collection[str] = contents.files[file_sha256]) -> bool:
            return folded(stored) in unknown or is_of_another_folder(stored, names, folder.root)

        if file_sha256 not in contents.changed:
            store.keep_listed(file_sha256, identities, keeps=keeps)
    if folder.listed:
        for file_sha256 in _left_out(store, folder, contents, limits, stop):
            store.keep_listed(file_sha256, (), keeps=lambda stored: folded(stored) in unknown)


def _left_out(
    store: FeatureStore, folder: ClipFolder, contents: Contents, limits: DecodeLimits, stop: Callable[[], bool]
) -> Iterator[str]:
    """Yield the contents of files that are in the folder as they were, and in no row of its labels.csv."""
    named = {file_of_name(clip.name) for clip in folder.clips}
    named |= {file_of_name(problem.name) for problem in folder.problems}
    for name, file_sha256 in store.labelled_files():
        path = folder.root / name
        if name in named or file_sha256 in contents.listed or not path.is_file():
            continue
        try:
            if content_hash(path, limits, stop) == file_sha256:
                yield file_sha256
        except DataError:  # outside of the folder, or it cannot be read
            continue
        except Stopped:
            return
