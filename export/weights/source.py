"""Sources of weights: parsed once, from the text of the command line or the name in a manifest.

Every network takes ``random:full``, ``random:tiny`` (a seed may follow: ``random:tiny:7``),
``miniworld`` (the small network that the project trained and carries) and ``published``; and its own:

    --blip, --clip, --videomae     OWNER/MODEL[@REVISION] | FOLDER | FOLDER/FILE.safetensors
    --slow, --i3d, --resnet3d      slow_r50, i3d_r50, r3d_18 | FILE.safetensors | FILE.pth | FILE.pyth
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...base.errors import UsageError
from .releases import BY_SOURCE, MINIWORLD, RELEASES, licence_of

PUBLISHED = {release.network: release.source for release in RELEASES}
ON_HUB = ("blip", "clip", "videomae")  # the others' published weights are files of a model zoo
_EVERYWHERE = "published, miniworld, random:full or random:tiny"
_RANDOM = re.compile(r"random:(?P<size>full|tiny)(:(?P<seed>\d{1,9}))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class WeightSource:
    """Origin of one network's weights."""

    network: str  # "blip", "clip", "slow", "i3d", "resnet3d", "videomae"
    kind: Literal["random", "miniworld", "files", "hub", "zoo"]
    text: str  # as given
    tiny: bool = False  # random: the tiny architecture instead of the published one
    seed: int = 0  # random
    sha256: str = ""  # that its weights file must have; empty: any, or the known one of a published file

    @property
    def path(self) -> Path:
        """The folder or weights file of kind ``files``."""
        return Path(self.text)

    @property
    def folder(self) -> Path:
        """The folder of ``path``, which holds the configuration."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def name(self) -> str:
        """Name for the manifest, which holds no path of the exporting machine."""
        return self.path.name if self.kind == "files" else self.text

    @property
    def hub_id(self) -> tuple[str, str | None]:
        """Repository of kind ``hub``, and the revision that was asked for."""
        return split_hub_id(self.text) or (self.text, None)

    def expected_sha256(self, file: Path) -> str:
        """The hash that ``file`` must have: as asked for, or as a published source is known to have it; or empty."""
        if self.sha256 or self.kind not in ("hub", "zoo"):
            return self.sha256
        repository, revision = self.hub_id
        release = BY_SOURCE.get(repository)
        if release is None or release.file != file.name or revision not in (None, release.revision):
            return ""
        return release.sha256

    @property
    def option(self) -> str:
        """The command-line option that takes it."""
        return f"--{self.network}"

    @property
    def licence(self) -> str:
        return "none" if self.kind == "random" else licence_of(self.text)


def parse_source(network: str, text: str) -> WeightSource:
    """The source of ``network`` that ``text`` names; raises UsageError where it names none."""
    if text == "published":
        text = PUBLISHED[network]
    named = recorded_source(network, text)
    if named is not None and named.kind in ("random", "miniworld"):
        return named
    if Path(text).exists():
        return WeightSource(network, "files", text)
    if named is not None:
        return named
    if network in ON_HUB:
        expected = "a hub id (OWNER/MODEL[@REVISION]), a folder with config.json and model.safetensors"
    else:
        expected = f"{PUBLISHED[network]}, FILE.safetensors, FILE.pth, FILE.pyth"
    raise UsageError(
        f"--{network} {text}: no such file or folder; expected {expected}, {_EVERYWHERE}",
        fix=f"flamest-export --backend onnx --{network} {PUBLISHED[network]} --out DIR",
    )


def parse_common_source(text: str) -> str:
    """Parse ``text`` of ``--weights``, for every network; raises UsageError for a source of one network only."""
    if text in ("published", MINIWORLD) or _RANDOM.fullmatch(text):
        return text
    raise UsageError(
        f"--weights {text}: expected {_EVERYWHERE}",
        fix="give files to their network: flamest-export --backend onnx --blip FOLDER --slow FILE --out DIR",
    )


def parse_sha256(texts: Sequence[str]) -> dict[str, str]:
    """Hash by network from texts ``NETWORK=SHA256``; raises UsageError for anything else, or a network given twice."""
    hashes: dict[str, str] = {}
    for text in texts:
        network, _, digest = text.partition("=")
        if network not in PUBLISHED or not _SHA256.fullmatch(digest) or network in hashes:
            raise UsageError(
                f"--weights-sha256 {text}: expected NETWORK=SHA256 once for a network, of {', '.join(PUBLISHED)}",
                fix="flamest-export verify-weights FILE prints the hash of a file",
            )
        hashes[network] = digest
    return hashes


def recorded_source(network: str, name: str) -> WeightSource | None:
    """The source that ``name``, in a manifest, means whatever files there are; None for local files, which it does not
    locate."""
    if seeded := _RANDOM.fullmatch(name):
        return WeightSource(network, "random", name, tiny=seeded["size"] == "tiny", seed=int(seeded["seed"] or 0))
    if name == MINIWORLD:
        return WeightSource(network, "miniworld", name)
    if network in ON_HUB:
        return WeightSource(network, "hub", name) if is_hub_id(name) else None
    return WeightSource(network, "zoo", name) if name == PUBLISHED[network] else None


def is_hub_id(text: str) -> bool:
    """True where ``text`` has the form of a hub id, OWNER/MODEL, with or without @REVISION."""
    return split_hub_id(text) is not None and not text.startswith((".", "/"))


def split_hub_id(text: str) -> tuple[str, str | None] | None:
    """(repository, revision or None) of a hub id; None where ``text`` is none."""
    hub = _HUB_ID.fullmatch(text)
    return None if hub is None else (hub["repository"], hub["revision"])
