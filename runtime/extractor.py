"""A clip in, its numbers out: the paper's Figure 1, from a bundle and without PyTorch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, MissingExtra
from ..base.files import printable_path
from .bundle import Bundle, open_bundle
from .frames import prepare_frames
from .keyframes import Indices, clip_seeds, draw_keyframe, load_clustering, pick_keyframes
from .manifest import Manifest
from .records import Caption, Clip, ClipFeatures
from .session import open_session
from .video import DecodeLimits, VideoDecoder
from .vlm import ImageMemory, VisionLanguageModel

if TYPE_CHECKING:
    import tokenizers

STAGES = ("decode", "keyframes", "vision", "caption", "embed", "slow")


class Extractor:
    """Turns clips into ClipFeatures. Open with ``open_extractor``; a context manager; one thread at a time."""

    def __init__(self, bundle: Bundle, video: VideoDecoder, *, threads: int | None) -> None:
        self.manifest: Manifest = bundle.manifest
        self._tokenizer = _open_tokenizer(bundle.tokenizer)
        self._vlm = VisionLanguageModel(
            open_session(bundle.graph("vision"), threads=threads),
            open_session(bundle.graph("text"), threads=threads),
            bundle.manifest.vlm,
        )
        self._slow = open_session(bundle.graph("slow"), threads=threads)
        self._keyframe_graph = open_session(bundle.graph("keyframes"), threads=threads)
        self._video = video

    def extract(self, clip: Clip) -> ClipFeatures:
        """The clip's embeddings (paper eqs. 3 to 7). Same clip and bundle, same machine: same bytes.

        Raises DataError with a named reason when the file cannot be used (video.py lists the codes)
        or a network's output is not finite.
        """
        rule, vlm, cnn = self.manifest.keyframes, self.manifest.vlm, self.manifest.cnn
        seeds = clip_seeds(self.manifest.extraction_seed, clip.sha256)
        stages = dict.fromkeys(STAGES, 0.0)

        with _timed(stages, "decode"):
            candidates = self._video.candidates(clip.path)
        with _timed(stages, "keyframes"):
            chosen = self._choose(candidates.pixels, seeds.clusters)
        with _timed(stages, "decode"):
            keyframes = self._video.keyframes(candidates, chosen)
        drawn = draw_keyframe(rule.count, seeds.draw)
        with _timed(stages, "vision"):
            frame = prepare_frames(keyframes.rgb[drawn : drawn + 1], vlm.preprocessing)
            memory = self._vlm.look(frame)
        with _timed(stages, "caption"):
            caption = self._write_caption(memory)
        with _timed(stages, "embed"):
            vlm_embedding = self._embed(memory, caption)
        with _timed(stages, "slow"):
            pixels = prepare_frames(keyframes.rgb, cnn.preprocessing)
            cnn_embedding = self._slow.run({"frames": pixels.transpose(1, 0, 2, 3)[None]})["embedding"][0]

        return ClipFeatures(
            vlm=_finite(vlm_embedding, vlm.width, "vision-language", clip),
            cnn=_finite(cnn_embedding, cnn.width, "spatio-temporal", clip),
            caption=caption,
            keyframe=drawn,
            keyframe_times_s=tuple(keyframes.t_s.tolist()),
            fingerprint=self.manifest.fingerprint,
            precision=self.manifest.precision,
            stages_ms=stages,
            warnings=candidates.warnings,
        )

    @property
    def decoder_peak_mb(self) -> float:
        """Largest resident memory of the decoder process so far, MB."""
        return self._video.peak_kb * 1024 / 1e6

    def close(self) -> None:
        self._video.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _choose(self, pixels: npt.NDArray[np.float32], seed: int) -> Indices:
        features = self._keyframe_graph.run({"frames": pixels})["features"]
        return pick_keyframes(features, self.manifest.keyframes.count, seed)

    def _write_caption(self, memory: ImageMemory) -> Caption:
        (ids,) = self._vlm.caption_ids(memory)
        return Caption(self._tokenizer.decode(list(ids), skip_special_tokens=True), ids)

    def _embed(self, memory: ImageMemory, caption: Caption) -> npt.NDArray[np.float32]:
        """NOTES decision 1: the caption's text is tokenised again and read with the frame."""
        ids = self._tokenizer.encode(caption.text, add_special_tokens=False).ids
        (vector,) = self._vlm.embed(memory, [tuple(ids)])
        return np.asarray(vector)


def open_extractor(bundle: Path, *, threads: int | None = None, limits: DecodeLimits | None = None) -> Extractor:
    """Check the bundle, open its graphs and make the decoder ready.

    ``threads``: cores for one run of a graph (None: all that this process may use). Raises DataError
    for a bundle that is not what was exported, MissingExtra when a package of ``flamest[agent]`` is
    not installed.
    """
    checked = open_bundle(bundle)
    _check_counts(checked)
    load_clustering()
    video = VideoDecoder(checked.manifest.keyframes, limits)
    try:
        video.start()  # it gets ready while the graphs are opened
        return Extractor(checked, video, threads=threads)
    except BaseException:
        video.close()
        raise


def _open_tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", extra="agent") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _check_counts(bundle: Bundle) -> None:
    keyframes, frames = bundle.manifest.keyframes.count, bundle.manifest.cnn.frames
    if keyframes != frames:
        raise DataError(
            f"{bundle.path}: its manifest picks {keyframes} keyframes, its graph 'slow' reads {frames}",
            fix="export the bundle again with this version of flamest-export",
        )


def _finite(vector: npt.NDArray[np.float32], width: int, whose: str, clip: Clip) -> npt.NDArray[np.float32]:
    """The vector itself, when it is what the manifest promises."""
    if vector.shape != (width,) or not np.isfinite(vector).all():
        raise DataError(
            f"{printable_path(clip.path)}: the {whose} network gave {vector.dtype}{list(vector.shape)}, "
            f"expected {width} finite numbers",
            code="not_finite",
        )
    return vector


@contextmanager
def _timed(stages: dict[str, float], stage: str) -> Iterator[None]:
    """Add the block's wall time, milliseconds, to ``stages[stage]``."""
    start = time.perf_counter()
    yield
    stages[stage] += (time.perf_counter() - start) * 1e3
