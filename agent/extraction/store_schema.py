"""Tables of the feature store's file, and how its faults are reported."""

from __future__ import annotations

from typing import NamedTuple

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
SEGMENTS = """
ALTER TABLE clips ADD COLUMN file_sha256 TEXT NOT NULL DEFAULT '';  -- of a segment's file; '': a whole file
ALTER TABLE clips ADD COLUMN start_us INTEGER;  -- of a segment, microseconds; NULL: a whole file
ALTER TABLE clips ADD COLUMN end_us INTEGER;
ALTER TABLE clips ADD COLUMN person TEXT NOT NULL DEFAULT '';
ALTER TABLE clips ADD COLUMN camera TEXT NOT NULL DEFAULT '';
ALTER TABLE clips ADD COLUMN listed INTEGER NOT NULL DEFAULT 1;  -- 0: its file is listed otherwise now
CREATE INDEX clips_of_file ON clips (file_sha256);
"""


class ClipColumns(NamedTuple):
    """SQL of a clip's columns, as a version of the file has them."""

    label: str
    others: str  # group, person, camera, start and end in microseconds
    listed: str

    @property
    def all(self) -> str:
        return f"{self.label}, {self.others}"


CLIP_COLUMNS = {
    2: ClipColumns("label", "grp, '', '', NULL, NULL", "1"),
    3: ClipColumns("iif(listed, label, NULL)", "grp, person, camera, start_us, end_us", "listed"),
}
_VERSION = SchemaFault(
    SettingsError, "store_version", "use the flamest-agent that wrote it, or extract the clips into a new store"
)
FEATURE_STORE = Schema(
    kind="feature store",
    extra="agent",
    tables=TABLES,
    first_version=2,
    migrations=(SEGMENTS,),
    oldest_readable=2,
    copy_before_migration=True,
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
