"""A model's files from the Hugging Face hub, or from its cache on this machine.

The hub's library writes a file under its final name only when it has the size that the hub states, but does not compare
the content. Its cache names a file after its hash, and that is compared here: a file that a proxy or a disk has changed
is not kept.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from pathlib import Path

from ...base.errors import DataError, FlamestError, MissingExtra, StorageError, UnreachableError
from ...base.files import HASH_CHUNK, FileStamp, open_regular, printable_path
from ...base.progress import note
from .checkpoints import MAX_FILE, WEIGHT_FILES
from .network_errors import is_disk_full, network_problem
from .releases import BY_SOURCE, Release, pinned_revision
from .source import WeightSource

OFFICIAL = "https://huggingface.co"
COMPANIONS = ("config.json", "tokenizer.json", "vocab.txt", "preprocessor_config.json")
SAFETENSORS, PICKLE = WEIGHT_FILES
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """The snapshot of ``repository`` in this machine's cache, at ``revision`` or the pinned one; no network.

    It need not be whole: an export fetches some of a repository's files, and TensorFlow's weights are not among them.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise MissingExtra("huggingface_hub", extra="export") from error
    revision = revision or pinned_revision(repository)
    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
    except (OSError, ValueError):
        return None
    return Path(found).parent if isinstance(found, str) else None


def is_cached(source: WeightSource) -> bool:
    """True where the weights of a hub id are in this machine's cache."""
    folder = cached_folder(*source.hub_id)
    return folder is not None and any((folder / name).is_file() for name in WEIGHT_FILES)


def fetch_folder(source: WeightSource, *, to_bring: str) -> tuple[Path, str]:
    """(folder, commit) of a hub id, at its revision, the one that releases.py pins, or its main branch.

    Of a release its own weights file is fetched; otherwise safetensors, or what PyTorch pickles where there are none.
    Raises UnreachableError that names the files ``to_bring`` and the command to type then (``bad_download`` for a file
    that is not the one that the hub names: it is removed from the cache); StorageError (``disk_full``); DataError when
    there are no weights of these kinds.
    """
    repository, revision = source.hub_id
    release, choices = BY_SOURCE.get(repository), WEIGHT_FILES
    if release is not None and revision in (None, release.revision):
        revision, choices = release.revision, (release.file,)
    else:
        release = None
    try:
        if not is_cached(source):
            _announce(repository, release)
        for name in choices:
            folder = Path(_download(repository, revision, (name, *COMPANIONS)))
            if any((folder / weights).is_file() for weights in WEIGHT_FILES):
                break
        else:
            raise DataError(
                f"'{repository}' has no weights on the hub that can be read: expected {SAFETENSORS} or {PICKLE}",
                fix=f"name another model, or a folder: flamest-export --backend onnx {source.option} FOLDER --out DIR",
                code="no_weights",
            )
        _check_content(folder, repository, (*WEIGHT_FILES, *COMPANIONS))
    except FlamestError:
        raise
    except Exception as error:  # the library raises its own, its HTTP client's and Xet's, which change with releases
        short = repository.rpartition("/")[2]
        bring = (
            f"where there is network, download {to_bring} of '{repository}' into a folder {short}, "
            f"bring it here, then type: flamest-export --backend onnx {source.option} ./{short} --out DIR"
        )
        raise _not_fetched(repository, error, bring) from error
    return folder, f"commit {folder.name}"


def fetch_file(repository: str, name: str, *, fix: str) -> Path:
    """One file of a repository's main branch, from the hub or from the cache.

    ``fix``: the other way to get it. Raises UnreachableError, StorageError.
    """
    try:
        folder = Path(_download(repository, None, (name,)))
        _check_content(folder, repository, (name,))
    except FlamestError:
        raise
    except Exception as error:  # as in fetch_folder
        raise _not_fetched(repository, error, fix) from error
    if not (folder / name).is_file():
        raise UnreachableError(f"'{repository}' on the hub has no {name}", fix=fix)
    return folder / name


def _download(repository: str, revision: str | None, files: tuple[str, ...]) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("huggingface_hub", extra="export") from error
    return str(snapshot_download(repository, revision=revision, allow_patterns=list(files)))


def _announce(repository: str, release: Release | None) -> None:
    """Say what is fetched from where to where; refuse to begin what the disk cannot hold."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    size = release.about_bytes if release else 0
    if constants.HF_HUB_OFFLINE:
        return  # nothing will be fetched
    shown = f"{release.file}, {size / 1e9:.2f} GB; licence: {release.licence}" if release else "licence unknown"
    note(f"fetching '{repository}' from {constants.ENDPOINT} to {printable_path(cache)} ({shown})")
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if free < size:
        raise StorageError(
            f"'{repository}' has {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {printable_path(cache)}",
            fix="free some space there, or set HF_HOME to a folder on another disk",
            code="disk_full",
        )


def _not_fetched(repository: str, error: Exception, fix: str) -> FlamestError:
    """The error of a fetch that failed. ``fix``: the other way to get the files."""
    if is_disk_full(error):
        return StorageError(
            f"'{repository}' cannot be fetched: no space left in the cache of the hub's library",
            fix="free some space there, or set HF_HOME to a folder on another disk",
            code="disk_full",
        )
    problem = network_problem(error)
    return UnreachableError(
        f"cannot fetch '{repository}' from the hub, and it is not in this machine's cache: {problem.reason}",
        fix=f"{problem.fix}; or {fix}" if problem.fix else fix,
    )


def _check_content(folder: Path, repository: str, names: tuple[str, ...]) -> None:
    """Raise UnreachableError (``bad_download``) unless every file is the one that the cache names it after."""
    from huggingface_hub import constants

    official = constants.ENDPOINT.rstrip("/") == OFFICIAL
    for name in names:
        pointer = folder / name
        if not pointer.is_symlink() or not pointer.exists():
            continue  # a cache without links names files by their paths
        blob = pointer.parent / os.readlink(pointer)
        if blob.parent.name == "blobs" and not _is_named_after_content(blob, FileStamp.of(blob), official=official):
            pointer.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            raise UnreachableError(
                f"{name} of '{repository}' is not the file that the hub has: it changed on its way or on the disk",
                fix="run the command again: the file was removed from the cache, and is fetched again",
                code="bad_download",
            )


@functools.lru_cache(maxsize=64)
def _is_named_after_content(blob: Path, stamp: FileStamp, *, official: bool) -> bool:
    """True unless the file's name is a hash of Git LFS or Git, and not that of its content.

    ``stamp``: of the file, so that one that was compared is not read again. ``official``: it is from the hub itself; a
    mirror may name small files by a hash of its own making.
    """
    if _SHA256.fullmatch(blob.name):
        digest = hashlib.sha256()
    elif official and _GIT_SHA1.fullmatch(blob.name):
        digest = hashlib.sha1(b"blob %d\0" % stamp.size, usedforsecurity=False)
    else:
        return True
    with open_regular(blob, largest=MAX_FILE) as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == blob.name


def local_or_hub(source: WeightSource, *, to_bring: str) -> tuple[Path, str]:
    """(folder or weights file, revision) of a source of kind ``files`` or ``hub``."""
    if source.kind == "files":
        return source.path, "local files"
    return fetch_folder(source, to_bring=to_bring)
