"""Published weight files: which revision we pin, the SHA-256 where a public source states it, and licences.

No hash here is ours: none of these files was available to us. ``stated_by`` names the place where a hash was
read; without a hash it is empty, and ``flamest-export verify-weights`` prints the file's own to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

MINIWORLD = "miniworld"
LICENCE_UNKNOWN = "not known to the exporter: ask whoever gave you the weights"
_ZOO = "Apache-2.0 (PyTorchVideo's repository; it states no separate licence for the weights); trained on Kinetics-400"


@dataclass(frozen=True)
class Release:
    """One weights file as published."""

    network: str  # "blip", "slow", …
    source: str  # hub id, or the name in a model zoo: as parse_source takes it
    revision: str  # the hub's commit that an export fetches; empty for a model zoo's file
    file: str
    licence: str
    parameters: int  # stored values, for the size where bytes is 0
    bytes: int = 0  # 0: not known here
    sha256: str = ""  # empty: not known here
    stated_by: str = ""

    @property
    def about_bytes(self) -> int:
        return self.bytes or 4 * self.parameters


RELEASES = (
    Release(
        network="blip",
        source="Salesforce/blip-image-captioning-base",
        revision="82a37760796d32b1411fe092ab5d4e227313294b",
        file="pytorch_model.bin",
        licence="BSD-3-Clause (model card)",
        parameters=223_971_644,
        bytes=989_820_849,
        sha256="d6638651a5526cc2ede56f2b5104d6851b0755816d220e5e046870430180c767",
        stated_by="four unrelated public repositories that pin this revision (LFS object id; read November 2026)",
    ),
    Release(
        network="clip",
        source="openai/clip-vit-base-patch32",
        revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        file="pytorch_model.bin",
        licence="MIT (OpenAI's CLIP repository); its model card calls any deployed use out of scope",
        parameters=151_277_313,
        bytes=605_247_071,
        sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        stated_by="several unrelated public repositories that pin this revision's file (read November 2026)",
    ),
    Release(
        network="videomae",
        source="MCG-NJU/videomae-base-finetuned-kinetics",
        revision="488eb9a0565f257b32866000305c8178965eb9f6",
        file="model.safetensors",
        licence="CC-BY-NC-4.0 (model card): not for commercial use",
        parameters=86_534_800,
    ),
    Release(
        network="resnet3d",
        source="r3d_18",
        revision="",
        file="r3d_18-b3b3357e.pth",
        licence="BSD-3-Clause (torchvision's repository; it states no separate licence for the weights); trained on "
        "Kinetics-400",
        parameters=33_371_472,
        bytes=133_546_016,
        sha256="b3b3357ead25631ec9c57362ff2128a92d0427e01e2cd184951a44380c3f2e9d",
        stated_by="its first 8 digits by the publisher, in the file's name; all of it, with the size, by one public "
        "repository (read November 2026); torchvision states the same size (127.359 MiB)",
    ),
    Release("slow", "slow_r50", "", "SLOW_8x8_R50.pyth", _ZOO, 32_454_096),
    Release("i3d", "i3d_r50", "", "I3D_8x8_R50.pyth", _ZOO, 28_043_472),
)
BY_SOURCE = {release.source: release for release in RELEASES}
_OTHER_LICENCES = {MINIWORLD: "Apache-2.0 (this project's own weights)"}


def pinned_revision(repository: str) -> str | None:
    """The commit of a hub id that an export fetches when no other is asked for."""
    release = BY_SOURCE.get(repository)
    return release.revision or None if release else None


def licence_of(name: str) -> str:
    """Licence of a source word, as far as we know: ``OWNER/MODEL@REVISION`` counts as ``OWNER/MODEL``."""
    source = name.partition("@")[0]
    return BY_SOURCE[source].licence if source in BY_SOURCE else _OTHER_LICENCES.get(source, LICENCE_UNKNOWN)


def licence_warning(part: str, licence: str) -> str:
    """Warning about a licence before deployment; empty without one."""
    if "-NC-" in licence or "non-commercial" in licence.lower():
        return f"{part}: these weights are NOT for commercial use ({licence})"
    if "out of scope" in licence:
        return f"{part}: the publisher's model card calls deployed use out of scope ({licence})"
    return ""
