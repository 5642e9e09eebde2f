"""An encoder of one's own as settings: ``Encoder`` in Python, the same in a TOML file for ``--extractor FILE.toml``.

docs/guides/own-encoder.md lists every key with examples.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from ...base.errors import SettingsError, UsageError
from ...base.files import printable_path
from ...base.settings import load_settings
from ...runtime.bundle.encoder_record import Argument, EncoderKind, Layout, OverTime, Positions
from ...runtime.bundle.manifest import FrameChoice, FramePreprocessing

GUIDE = "docs/guides/own-encoder.md lists the keys of an encoder"
Beside = Literal["blip", "blip-text", "clip", "slow", "i3d", "resnet3d", "videomae", "blip+slow"]
Filter = Literal["bicubic", "bilinear", "bilinear-bytes"]
MAX_FRAMES = 128
MAX_CHOSEN = 32  # frames that keyframes are chosen among
_FILTERS: dict[Filter, Any] = {"bicubic": "bicubic", "bilinear": "bilinear-pillow", "bilinear-bytes": "bilinear-bytes"}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_OF_MODULE = re.compile(r"[\w./\\-]+\.py:[A-Za-z_]\w*|[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From a video's frame to the encoder's: resized, cropped in the middle, (value / 255 - mean) / std.

    ``resize``: the short side before the crop to ``size``, in pixels; or height and width, whatever the aspect. Without
    it the short side is resized to ``size``. ``stretch``: the whole frame to ``size`` whatever the aspect, no crop.
    ``filter``: as Pillow's, antialiased; ``bilinear-bytes`` as torchvision's without antialiasing.
    """

    size: int = 224
    resize: int | tuple[int, int] | None = None
    stretch: bool = False
    filter: Filter = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def rule(self) -> FramePreprocessing:
        """The manifest's record. Raises SettingsError for sizes or deviations that cannot be."""
        short, both = (self.resize, None) if isinstance(self.resize, int) else (None, self.resize)
        sizes = [self.size, *([short] if short is not None else []), *(both or ())]
        if not all(1 <= size <= 2048 for size in sizes):
            raise _wrong(f"preprocessing: sizes {sizes}, expected pixels from 1 to 2048")
        if self.resize is not None and (self.stretch or min(sizes) < self.size):
            kept = "no crop with stretch = true" if self.stretch else f"at least size = {self.size}, which is cut out"
            raise _wrong(f"preprocessing: resize = {self.resize}, expected {kept}")
        if not all(abs(value) <= 1000 for value in self.mean) or not all(1e-3 <= value <= 1000 for value in self.std):
            raise _wrong(
                f"preprocessing: mean {list(self.mean)} and std {list(self.std)}, expected of values from 0 to 1: "
                "(value / 255 - mean) / std"
            )
        return FramePreprocessing(
            size=self.size,
            fit="stretch" if self.stretch else "crop",
            filter=_FILTERS[self.filter],
            mean=self.mean,
            std=self.std,
            resized=both,
            short_side=msgspec.UNSET if short is None else short,
        )


class Pooling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the module's output to one vector of a clip.

    An output is a vector [C], a map [C, H, W] (of a video also [C, T, H, W]) or tokens [N, C] of each frame or clip.
    ``positions``: their mean, or the first one alone, as a class token; ``skip_tokens`` at the front are left out
    before. ``over_time``, of an image encoder: the mean over the frames; ``motion``, the mean absolute difference of
    neighbouring frames, position by position; or both, one after the other.
    """

    positions: Positions = "mean"
    skip_tokens: int = 0
    channels_last: bool = False  # a map is [H, W, C]
    over_time: OverTime = "mean"


class Encoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen encoder of images or video, exported like the built-in ones.

    Exactly one of ``module``, ``hub`` and ``timm`` names it. ``module``: "FILE.py:FUNCTION" or
    "PACKAGE.MODULE:FUNCTION", which returns a ``torch.nn.Module``; in Python also the module itself. ``hub``:
    OWNER/MODEL[@REVISION], or its folder. ``timm``: the name of a model of timm.
    """

    name: str  # of the extractor in the manifest: small letters, digits, "-", "_", "."
    module: Any = None
    hub: str = ""
    timm: str = ""
    weights: Path | None = None  # .safetensors, or .pth with tensors alone; None: as the module comes
    sha256: str = ""  # that the weights file must have
    arguments: dict[str, Argument] = {}  # of FUNCTION, or of timm.create_model
    call: dict[str, Argument] = {}  # named arguments of every call of the module
    part: str = ""  # of the module, that is called instead of all of it: "vision_model"
    output: str | int = ""  # which of several outputs: the name of a field, or a number
    kind: EncoderKind = "image"
    layout: Layout = "time-first"  # of a video encoder's frames: [B, K, 3, S, S]; channels-first: [B, 3, K, S, S]
    frames: int = 8  # of a clip
    choice: FrameChoice = "uniform"  # spread evenly, or chosen by clustering (needs the Slow network's first layers)
    width: int = 0  # that the embedding must have; 0: any
    beside: Beside | None = None  # built-in networks in the same bundle, before this one in the embedding
    licence: str = ""
    preprocessing: Preprocessing = Preprocessing()
    pooling: Pooling = Pooling()

    @classmethod
    def from_toml(cls, path: str | Path) -> Encoder:
        """Read a TOML file; ``weights``, ``hub`` and "FILE.py" in it are relative to its folder.

        Raises UsageError without the file, SettingsError for a key or a value that cannot be.
        """
        return read_encoder(Path(path))


def read_encoder(path: Path) -> Encoder:
    """Read an encoder's TOML file; raises as ``Encoder.from_toml``."""
    if not path.is_file():
        raise UsageError(
            f"--extractor {printable_path(path)}: no such file",
            fix=f"write one ({GUIDE}), or flamest-export extractors lists the built-in ones",
        )
    try:
        encoder = check_encoder(load_settings(path, Encoder))
    except SettingsError as error:
        shown = printable_path(path)
        message = error.message if shown in error.message else f"{shown}: {error.message}"
        raise SettingsError(message, fix=f"edit {shown}; {GUIDE}", code=error.code) from error
    return msgspec.structs.replace(
        encoder,
        module=_beside_file(encoder.module, path.parent),
        weights=None if encoder.weights is None else path.parent / encoder.weights,
        hub=str(path.parent / encoder.hub) if encoder.hub and (path.parent / encoder.hub).is_dir() else encoder.hub,
    )


def _beside_file(module: Any, folder: Path) -> Any:
    """The text FILE.py:FUNCTION with FILE.py in ``folder``; other modules as they are."""
    file, colon, function = module.rpartition(":") if isinstance(module, str) else ("", "", "")
    return f"{folder / file}{colon}{function}" if file.endswith(".py") else module


def check_encoder(encoder: Encoder) -> Encoder:
    """Return ``encoder`` when its values fit each other; raises SettingsError ``bad_encoder`` otherwise."""
    _check_types(encoder)
    if not _NAME.fullmatch(encoder.name):
        raise _wrong(f"name = {encoder.name!r}: expected small letters, digits, '-', '_' and '.', at most 64")
    given = [key for key in ("module", "hub", "timm") if getattr(encoder, key)]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise _wrong(f"{found} given, expected exactly one of module, hub and timm")
    if isinstance(encoder.module, str) and not _OF_MODULE.fullmatch(encoder.module):
        raise _wrong(f"module = {encoder.module!r}: expected 'FILE.py:FUNCTION' or 'PACKAGE.MODULE:FUNCTION'")
    if encoder.arguments and encoder.hub:
        raise _wrong("arguments: a model of the hub takes none, expected them with module or timm")
    most = MAX_FRAMES if encoder.choice == "uniform" and encoder.beside is None else MAX_CHOSEN
    if not 1 <= encoder.frames <= most:
        raise _wrong(f"frames = {encoder.frames}: expected 1 to {most} (1 to {MAX_FRAMES} alone and uniform)")
    if encoder.kind == "video" and encoder.pooling.over_time != "mean":
        raise _wrong(f'pooling.over_time = "{encoder.pooling.over_time}": a video encoder sees the frames together')
    if encoder.kind == "image" and encoder.layout != "time-first":
        raise _wrong('layout is of video encoders: expected it with kind = "video"')
    if "motion" in encoder.pooling.over_time and encoder.frames < 2:
        raise _wrong("pooling.over_time with motion needs two frames or more")
    if not 0 <= encoder.pooling.skip_tokens <= 1024:
        raise _wrong(f"pooling.skip_tokens = {encoder.pooling.skip_tokens}: expected 0 to 1024")
    encoder.preprocessing.rule()
    return encoder


def _check_types(encoder: Encoder) -> None:
    """Check the types of an Encoder that was made in Python; those of a file were checked as it was read."""
    values = {name: getattr(encoder, name) for name in encoder.__struct_fields__ if name not in ("module", "weights")}
    try:
        msgspec.convert(msgspec.to_builtins({**values, "weights": None}), Encoder)
    except (msgspec.ValidationError, TypeError) as error:
        raise _wrong(f"Encoder: {error}") from error


def _wrong(message: str) -> SettingsError:
    return SettingsError(message, fix=GUIDE, code="bad_encoder")
