"""Records that ``same_bytes`` makes of a file, a database or an answer, and what it leaves out because two runs of the
same code differ in it."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sqlite3
import struct
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Keys of JSON objects and columns of tables that are left out everywhere, and why.
LEFT_OUT = {
    **dict.fromkeys(
        ("created", "time", "ts", "since", "opened", "last_update", "certificate_expires"), "the wall clock"
    ),
    **dict.fromkeys(("started_at", "opened_at", "ended_at", "received_at", "last_at"), "the wall clock"),
    **dict.fromkeys(("seconds", "seconds_test", "ms_per_clip", "stages_ms"), "how fast the machine was"),
    **dict.fromkeys(("certificate_days", "certificate_days_left"), "certificates are made for each run, and grow old"),
    "peak_mb": "memory in use depends on when pages are given back",
    "pid": "the system chooses it",
    "previous": "the hash of the ledger's line before, which has a time in it",
    "versions": "of installed packages, the program's own among them",
}
# Keys of sentences for people: a difference in one of them is reported separately.
WORDS = frozenset({
    "words", "detail", "details", "fix", "message", "reason", "adopted_why", "overrides", "title", "note", "notes",
})  # fmt: skip
# In addition, where the policy of a silo adds noise that nothing can repeat: all that follows from its values.
NOISY = frozenset({
    "sha256", "header_sha256", "payload_sha256", "model_sha256", "base_sha256", "digest", "norm", "farthest",
})  # fmt: skip
# Of a silo: how often it asks for work in vain, and with it the bytes moved, depends on how fast the others are.
MOVED = frozenset({"sent_bytes", "received_bytes"})
SQL_COMMENT = re.compile(r"--[^\n]*")  # documentation, though SQLite keeps it with the table
FREE = re.compile(r"[\d.]+ GB free")  # on the disk
ADDRESS = re.compile(r"127\.0\.0\.1:\d+")  # the system chooses the port


def normalised(value: Any, home: Path, *, but: frozenset[str] = frozenset()) -> Any:
    """An answer of a command: without LEFT_OUT and the keys of ``but``, folders and ports under one name."""
    if isinstance(value, Mapping):
        kept = {key: entry for key, entry in value.items() if key not in LEFT_OUT and key not in but}
        return {key: normalised(entry, home, but=but) for key, entry in kept.items()}
    if isinstance(value, list | tuple):
        return [normalised(entry, home, but=but) for entry in value]
    if isinstance(value, str):
        return FREE.sub("SPACE free", ADDRESS.sub("127.0.0.1:PORT", value.replace(str(home), "HOME")))
    return value


def digest(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def database(path: Path, *, but: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Every row of every table, in the order of its values; bytes as their length and SHA-256. And the schema."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        tables = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table' ORDER BY name"))
        found: dict[str, Any] = {"user_version": connection.execute("PRAGMA user_version").fetchone()[0]}
        found["schema"] = {name: " ".join(SQL_COMMENT.sub("", sql).split()) for name, sql in tables.items()}
        for table in tables:
            cursor = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            rows = [
                {
                    name: _cell(value)
                    for name, value in zip(columns, row, strict=True)
                    if name not in LEFT_OUT and name not in but
                }
                for row in cursor
            ]
            found[table] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
        return found
    finally:
        connection.close()


def _cell(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return f"{len(value)} bytes, {digest(value)}"


def files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below ``folder``, by its name there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in paths}


def model(path: Path, *, noisy: bool = False) -> dict[str, Any]:
    """A safetensors file: hash, metadata, and each tensor's shape and hash; without the hashes where they are noise."""
    data = path.read_bytes()
    start = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:start])
    found: dict[str, Any] = {"bytes": len(data), "metadata": header.pop("__metadata__", None)}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = [entry["dtype"], entry["shape"], "noise" if noisy else digest(data[start + begin : start + end])]
    return found if noisy else {**found, "sha256": digest(data)}


def arrays(path: Path) -> dict[str, Any]:
    """Of an .npz file: each array's type, shape and bytes."""
    with np.load(path, allow_pickle=False) as loaded:
        return {
            name: [str(loaded[name].dtype), list(loaded[name].shape), digest(loaded[name].tobytes())]
            for name in loaded.files
        }


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def certificate(path: Path) -> dict[str, Any]:
    """Content of a certificate, without key, serial number and dates, which are new every time; how long it lasts."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(path.read_bytes())
    keys = (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier)
    return {
        "version": found.version.name,
        "subject": found.subject.rfc4514_string(),
        "issuer": found.issuer.rfc4514_string(),
        "days": (found.not_valid_after_utc - found.not_valid_before_utc).total_seconds() / 86400,
        "signature": found.signature_algorithm_oid.dotted_string,
        "key": found.public_key_algorithm_oid.dotted_string,
        "extensions": {
            one.oid.dotted_string: [one.critical, "of keys" if isinstance(one.value, keys) else str(one.value)]
            for one in found.extensions
        },
    }


def log_lines(path: Path, home: Path, *, noisy: bool = False) -> list[Any]:
    """A daemon's log and, last, the answer of ``--json``; with ``noisy`` only the events.

    Lines are in the order of their words: whose update came first is chance.
    """
    *lines, last = path.read_text().splitlines()
    fields = [dict(part.split("=", 1) for part in shlex.split(line)) for line in lines]
    if noisy:
        return sorted(line["event"] for line in fields)
    parted = [_parted(normalised(line, home)) for line in fields]
    return [
        *sorted(parted, key=lambda line: json.dumps(line, sort_keys=True)),
        normalised(json.loads(last), home, but=MOVED),
    ]


def _parted(line: dict[str, str]) -> dict[str, Any]:
    """A line of a log, its sentences apart."""
    words = {key: value for key, value in line.items() if " " in value}
    return {**{key: value for key, value in line.items() if key not in words}, "words": words}


def settings(path: Path) -> dict[str, Any]:
    """A settings file: what it says, and how."""
    return {"keys": tomllib.loads(path.read_text()), "words": path.read_text().splitlines()}


# --- the wire ---

# By call and direction: field numbers whose values two runs of the same code do not share. Their tags stay.
WIRE_LEFT_OUT = {
    ("WaitForRound", "sent"): {4},  # instance: random bytes of the state folder
    ("WaitForRound", "received"): {4, 5},  # deadline_ms, poll_after_ms: time that is left, jitter
}
PHASE, PHASE_WAIT = 1, 1  # field and value of a WaitForRound reply: nothing to do yet
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def wire(path: Path, *, noisy: bool = False) -> dict[str, Any]:
    """A silo's messages in order, and the calls that were refused; with ``noisy`` only which, and how long.

    Questions for work that were answered "wait" are left out: their number depends on how fast the others were.
    """
    found: list[dict[str, Any]] = []
    refused = []
    for line in json_lines(path):
        if line["direction"] == "refused":
            refused.append(line)
            continue
        call, direction, data = line["method"].rpartition("/")[2], line["direction"], bytes.fromhex(line["message"])
        made = _fields(data, WIRE_LEFT_OUT.get((call, direction)))
        kept = {"bytes": made["bytes"]} if noisy else made
        found.append({"method": line["method"], "direction": direction, **kept})
        if (call, direction) == ("WaitForRound", "received") and _phase(data) == PHASE_WAIT:
            del found[-2:]
    return {"messages": found, "refused": refused}


def _fields(data: bytes, left_out: set[int] | None) -> dict[str, Any]:
    """The SHA-256 of the message without the values of ``left_out``; of each field too, so that one sees which."""
    blanked, fields = b"", list[str]()
    for number, tag, value in split_message(data):
        kept = b"" if number in (left_out or ()) else value
        blanked += tag + kept
        fields.append(f"{number}: {kept.hex() if len(kept) <= 16 else digest(kept)[:16]}")
    return {"bytes": len(blanked), "sha256": digest(blanked), "fields": fields}


def _phase(data: bytes) -> int:
    return next((value[0] for number, _, value in split_message(data) if number == PHASE), 0)


def split_message(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, tag and value of every field of a protobuf message, the value with its encoded length."""
    place = 0
    while place < len(data):
        begun = place
        tag, place = _varint(data, place)
        valued, kind = place, tag & 7
        if kind == VARINT:
            _, place = _varint(data, place)
        elif kind == BYTES:
            length, place = _varint(data, place)
            place += length
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        yield tag >> 3, data[begun:valued], data[valued:place]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
