"""Backup of the state folder, made next to a running server, and its restoration.

    BACKUP/backup.json            every file's SHA-256
    BACKUP/coordinator.sqlite     through SQLite's backup API: one moment of it
    BACKUP/runs/NAME/…            models, strategy state, and the payloads of the open round

Files are copied after the database, so a round that ends meanwhile may remove files that the copied rows name, or
overwrite them (spool.py): then the copy is made again. Models that are newer than the copied rows are left out.
A backup is untrusted like any folder: names outside a state folder, links and special files are refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec

from ...base.errors import DataError, LockedError, StorageError
from ...base.files import FileLock, new_directory, open_regular, read_regular, sha256_file, storage_code
from ...base.sqlite import copy_database
from ...fedproto.records import decode_run_settings
from .database import DATABASE_FILE, open_database, read_database
from .last_round import check_last_round, settle_last_round
from .models import ModelStore
from .strategy_state import StrategyState

LISTING = "backup.json"
PARTS = ("memory", "models", "updates")  # memory first: only the last two rounds' files are kept there
TRIES = 5
LARGEST_LISTING = 64 << 20  # bytes
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of every folder and file in a state folder


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``backup.json``."""

    files: dict[str, str]  # path in the backup -> SHA-256
    sizes: dict[str, int] = {}  # path -> bytes; a larger file is refused before it is hashed


def back_up(state: Path, to: Path) -> dict[str, Any]:
    """Copy ``state`` to the new folder ``to``. Raises DataError, StorageError. Keys: backup, files, bytes.

    A state that has lost rounds is refused (``lost_rounds``): a backup would hide it.
    """
    for folder in (state / "runs").glob("*"):
        check_last_round(state, folder.name)
    with new_directory(to, mode=0o700) as building:
        for _ in range(TRIES):
            _copy(state, building)
            settle_last_round(building)
            if _is_whole(building):
                break
            for part in building.iterdir():
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        else:
            raise StorageError(f"{state} changed {TRIES} times while it was copied", fix="try again between two rounds")
        files = {str(path.relative_to(building)): path for path in sorted(building.rglob("*")) if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        listing = Backup({name: sha256_file(path) for name, path in files.items()}, sizes)
        (building / LISTING).touch(mode=0o600)
        (building / LISTING).write_bytes(msgspec.json.format(msgspec.json.encode(listing)) + b"\n")
    return {"backup": str(to), "files": len(files), "bytes": sum(sizes.values())}


def restore(state: Path, source: Path) -> dict[str, Any]:
    """Replace ``state`` by a backup; the old folder is kept next to it. Keys: state, files, kept.

    Every hash is checked before anything is moved. Raises DataError (``bad_backup``), LockedError while a coordinator
    runs, StorageError. After an error the state is the old one. The database of an earlier version is migrated.
    """
    files = check_backup(source)
    if FileLock.is_held(state / "lock"):
        raise LockedError(f"a coordinator is running on {state}", fix="stop it first")
    kept = None
    try:
        if state.exists() and any(state.iterdir()):
            kept = _free_name(state)
            os.replace(state, kept)
        with new_directory(state, mode=0o700) as building:
            for name, sha256 in files.items():
                (building / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _copy_file(source / name, building / name)
                if sha256_file(building / name) != sha256:
                    raise _bad_backup_error(source, f"{name} changed while it was copied")
            open_database(building / DATABASE_FILE).close()  # migrates that of an earlier version
            settle_last_round(building)
    except OSError as error:
        raise StorageError(
            f"cannot restore {state}: {error.strerror}",
            fix="check free space and permissions of the folder; the state is the old one",
            code=storage_code(error),
        ) from error
    finally:
        if kept is not None and not state.exists():
            os.replace(kept, state)
    return {"state": str(state), "files": len(files), "kept": str(kept) if kept else None}


def check_backup(source: Path) -> dict[str, str]:
    """Return the SHA-256 of a backup's files by name. Raises DataError (``bad_backup``) unless each has its hash."""
    try:
        listing = msgspec.json.decode(read_regular(source / LISTING, largest=LARGEST_LISTING), type=Backup)
    except (ValueError, RecursionError, DataError, StorageError) as error:
        raise _bad_backup_error(source, str(error)) from error
    if DATABASE_FILE not in listing.files or not all(_is_inside(source, name) for name in listing.files):
        raise _bad_backup_error(source, f"{LISTING} does not list a state folder")
    for name, sha256 in listing.files.items():
        try:
            found = sha256_file(source / name, largest=listing.sizes.get(name))
        except (DataError, StorageError) as error:
            raise _bad_backup_error(source, error.message) from error
        if found != sha256:
            raise _bad_backup_error(source, f"{name} is not what was written")
    return dict(listing.files)


def _is_inside(source: Path, name: str) -> bool:
    """Return True for a name that a file of a state folder may have, with no link on the way to it."""
    parts = name.split("/")
    paths = [source.joinpath(*parts[: length + 1]) for length in range(len(parts))]
    return all(FILE_NAME.fullmatch(part) for part in parts) and not any(path.is_symlink() for path in paths)


def _bad_backup_error(source: Path, why: str) -> DataError:
    return DataError(
        f"{source} cannot be used as a backup: {why}",
        fix="choose another one; flamest-coordinator backup makes them",
        code="bad_backup",
    )


def _copy(state: Path, building: Path) -> None:
    database = read_database(state / DATABASE_FILE)
    try:
        copy_database(database, building / DATABASE_FILE)
    finally:
        database.close()
    for part in (folder / name for folder in (state / "runs").glob("*") for name in PARTS):
        # A round that ends meanwhile removes folders, which ``Path.rglob`` does not survive.
        for path in (Path(folder, name) for folder, _, names in os.walk(part) for name in names):
            target = building / path.relative_to(state)
            if path.is_file() and not path.name.endswith(".tmp"):
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile: _is_whole finds out if it is needed
                    _copy_file(path, target)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file, readable by the owner alone: silos' updates are among them."""
    target.touch(mode=0o600)
    with open_regular(source, follow=False) as read, target.open("wb") as written:
        shutil.copyfileobj(read, written)


def _is_whole(building: Path) -> bool:
    """Return True when the files that the copied rows name are there and intact: the last model, the strategy's state,
    the open round's updates."""
    database = read_database(building / DATABASE_FILE)
    try:
        runs = list(database.execute("SELECT name, settings, initial_sha256 FROM runs"))
        closed = list(
            database.execute("SELECT run, number, model_sha256 FROM rounds WHERE status = 'closed' ORDER BY number")
        )
        updates = list(
            database.execute(
                "SELECT run, round, silo, payload_sha256 FROM updates JOIN rounds USING (run)"
                " WHERE number = round AND status = 'open'"
            )
        )
    finally:
        database.close()
    for name in (f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm"):  # of this reader
        (building / name).unlink(missing_ok=True)
    try:
        for name, settings, initial_sha256 in runs:
            run, folder = decode_run_settings(settings), building / "runs" / name
            rounds = [(0, initial_sha256), *((number, sha256) for owner, number, sha256 in closed if owner == name)]
            ModelStore(folder / "models", run, keep=0).read(*rounds[-1])
            StrategyState(folder / "memory", run).read(len(rounds) - 1, *rounds[-1])
        paths = [
            (building / "runs" / run / "updates" / f"{number:06d}" / f"{silo}.f32", sha256)
            for run, number, silo, sha256 in updates
        ]
        return all(sha256_file(path) == sha256 for path, sha256 in paths)
    except (DataError, StorageError):
        return False


def _free_name(state: Path) -> Path:
    number = 1
    while (free := state.with_name(f"{state.name}.before-restore-{number}")).exists():
        number += 1
    return free
