"""The published captioner's caption of one picture, as transformers' own test states it: do ours say the same?

It is ``test_inference_image_captioning``, which expects the same ids in fp32 and fp16
(https://github.com/huggingface/transformers/blob/main/tests/models/blip/test_modeling_blip.py). Its picture is fetched
from the hub, or given as a file. The preparation of the picture is ours in every comparison.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, MissingExtra
from ...base.files import printable_path, read_regular
from ...runtime.backends.opening import GraphOpener, OpeningOptions
from ...runtime.bundle.manifest import TOKENIZER_FILE, VisionLanguage
from ...runtime.bundle.opening import open_bundle
from ...runtime.video.preprocessing import frame_input, frames_for, prepare_frames
from ...runtime.vision_language import VisionLanguageModel
from .hub import fetch_file

if TYPE_CHECKING:
    from .loading import LoadedBlip

PICTURE_REPOSITORY, PICTURE = "hf-internal-testing/blip-test-image", "demo.jpg"
PICTURE_URL = f"https://huggingface.co/{PICTURE_REPOSITORY}/resolve/main/{PICTURE}"
EXPECTED = (30522, 1037, 2450, 3564, 2006, 1996, 3509, 2007, 2014, 3899, 102)  # [DEC], the caption, [SEP]
EXPECTED_TEXT = "a woman sitting on the beach with her dog"
LARGEST_PICTURE = 64 << 20  # bytes
LARGEST_PIXELS = 1 << 26
Rgb = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GoldenCaption:
    """A caption of the picture. ``equal``: token by token, start and end included."""

    by: str
    token_ids: tuple[int, ...]
    text: str

    @property
    def equal(self) -> bool:
        return self.token_ids == EXPECTED

    @property
    def first_difference(self) -> int | None:
        """Position of the first token that differs; None when none does."""
        if self.equal:
            return None
        pairs = zip(self.token_ids, EXPECTED, strict=False)
        return next(
            (place for place, (mine, theirs) in enumerate(pairs) if mine != theirs),
            min(len(self.token_ids), len(EXPECTED)),
        )


def golden_captions(loaded: LoadedBlip, picture: Rgb, bundle: Path | None) -> list[GoldenCaption]:
    """Caption the picture by the reference network, and by the graphs of ``bundle`` on this machine's best backend.

    Raises DataError for a bundle of other weights, or without generated captions.
    """
    captions = [_by_network(loaded, picture)]
    if bundle is not None:
        captions.append(_by_bundle(bundle, picture, loaded.source.weights_sha256))
    return captions


def read_picture(path: Path | None) -> Rgb:
    """The picture, uint8 [height, width, 3]: from a file, or from the hub where ``path`` is None.

    Raises UnreachableError, whose fix names the option that takes a file; DataError (``bad_picture``); StorageError.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("PIL", extra="export") from error
    if path is None:
        by_hand = f"fetch {PICTURE_URL} where there is network, and give it with --image {PICTURE}"
        path = fetch_file(PICTURE_REPOSITORY, PICTURE, fix=by_hand)
    data = read_regular(path, largest=LARGEST_PICTURE)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{printable_path(path)} is no picture that can be read: {error}",
            fix=f"fetch {PICTURE_URL} again",
            code="bad_picture",
        ) from error


def _by_network(loaded: LoadedBlip, picture: Rgb) -> GoldenCaption:
    from ..parity.blip import captions_of
    from ..parts import vision_language

    spec = vision_language(loaded.model, loaded.tokenizer, "bidirectional", 1)
    (ids,) = captions_of(loaded.model, prepare_frames(picture[None], spec.preprocessing), spec)
    return _golden("the reference network (PyTorch)", ids, spec, decode(loaded.tokenizer, ids))


def _by_bundle(bundle: Path, picture: Rgb, weights_sha256: str) -> GoldenCaption:
    checked = open_bundle(bundle)
    manifest = checked.manifest
    spec, source = manifest.vlm, manifest.sources.get("blip")
    if not isinstance(spec, VisionLanguage) or source is None:
        raise DataError(
            f"{printable_path(bundle)} generates no captions: its extractor is {manifest.extractor}",
            fix="give a bundle whose extractor has BLIP, or leave --bundle out",
            code="no_captions",
        )
    if source.weights_sha256 != weights_sha256:
        raise DataError(
            f"{printable_path(bundle)} holds the captioner {source.name}, of other weights than these",
            fix="give the weights that the bundle was exported from (flamest-export inspect)",
            code="other_weights",
        )
    opener = GraphOpener(checked, OpeningOptions())
    try:
        words = opener.open("words") if spec.attention_mode == "text" else None
        model = VisionLanguageModel(opener.open("vision"), opener.open("text"), spec, words=words)
        form = frame_input(manifest.graphs["vision"], spec.preprocessing)
        (ids,) = model.caption_ids(model.encode_image(frames_for([picture], form)))
    finally:
        opener.close()
    where = ", ".join(f"{graph} on {placed.where} {placed.precision}" for graph, placed in opener.placements.items())
    text = decode(checked.read(TOKENIZER_FILE), ids)
    return _golden(f"the bundle {printable_path(bundle)} ({where})", ids, spec, text)


def _golden(by: str, ids: tuple[int, ...], spec: VisionLanguage, text: str) -> GoldenCaption:
    """The caption with its start, and with its end where it has come to one."""
    ended = len(ids) < spec.caption.max_new_tokens
    return GoldenCaption(by, (spec.caption.start_id, *ids, *([spec.caption.end_id] if ended else [])), text)


def decode(tokenizer: bytes, ids: tuple[int, ...]) -> str:
    """The text of token ids, by a ``tokenizer.json``."""
    from tokenizers import Tokenizer

    return str(Tokenizer.from_str(tokenizer.decode()).decode(list(ids), skip_special_tokens=True))
