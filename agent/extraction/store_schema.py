"""Tables of the feature store's file, and how its faults are reported."""

from __future__ import annotations

from ...base.errors import DataError, SettingsError
from ...base.sqlite import Schema, SchemaFault

TABLES = """
CREATE TABLE clips (
    sha256 TEXT PRIMARY KEY,  -- of the file's content
    path TEXT NOT NULL,       -- relative to the video folder, as last seen
    label TEXT,               -- NULL: not known
    grp TEXT NOT NULL         -- clips of one scene or person
) STRICT;
CREATE TABLE features (
    sha256 TEXT NOT NULL REFERENCES clips,
    fingerprint TEXT NOT NULL,   -- of the bundle's meaning
    precision TEXT NOT NULL,
    x BLOB NOT NULL,             -- float32, little endian: vision-language, then spatio-temporal
    vlm_width INTEGER NOT NULL,  -- numbers of the first part; 0 where the parts are not known
    caption TEXT NOT NULL,
    keyframe INTEGER NOT NULL,   -- which keyframe was captioned
    times TEXT NOT NULL,         -- JSON, seconds of the keyframes
    PRIMARY KEY (sha256, fingerprint, precision)
) STRICT;
CREATE TABLE failures (
    path TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    limit_s REAL           -- seconds that decoding could take then; NULL: not known
) STRICT;
"""
_VERSION = SchemaFault(
    SettingsError, "store_version", "use the flamest-agent that wrote it, or extract the clips into a new store"
)
FEATURE_STORE = Schema(
    kind="feature store",
    extra="agent",
    tables=TABLES,
    first_version=2,
    application_id=0x464C4D53,  # "FLMS"
    damaged=SchemaFault(
        DataError,
        "store_damaged",
        "restore it from a backup; or move it away and extract again: features can be made again from the clips",
    ),
    older=_VERSION,
    newer=_VERSION,
    foreign=SchemaFault(DataError, "not_a_store", "give the file that flamest-agent extract made"),
    largest_value=1 << 20,  # the widest embedding takes a quarter of that
)
