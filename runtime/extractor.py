"""A clip in, its numbers out: the paper's Figure 1, from a bundle and without PyTorch.

Which parts there are, how many frames each sees and how these are chosen stands in the manifest. The
parts do not see each other: a pair's numbers are, bit for bit, those of its two parts one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..base.files import printable_path
from .backends.opening import GraphOpener, Opening, Place, effective_precision
from .bundle import Bundle, open_bundle
from .describers import open_describer
from .frames import Rgb, prepare_frames
from .keyframes import Indices, clip_seeds, draw_keyframes, load_clustering, pick_keyframes, spread_indices
from .manifest import Manifest
from .records import Candidates, Caption, Clip, ClipFeatures
from .signature import TrustedKeys
from .stages import STAGES, stages_of, timed
from .video import DecodeLimits, VideoDecoder

__all__ = ["STAGES", "Extractor", "open_extractor"]

_NOTHING = np.empty(0, dtype=np.float32)
_NO_CAPTION = Caption("", ())


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Row numbers of candidates, not decreasing; empty for a part that the extractor has not."""

    vlm: Indices
    cnn: Indices


class Extractor:
    """Turns clips into ClipFeatures. Open with ``open_extractor``; a context manager; one thread at a time."""

    def __init__(self, bundle: Bundle, video: VideoDecoder, opening: Opening) -> None:
        self.manifest: Manifest = bundle.manifest
        self.stages = stages_of(bundle.manifest)
        self.precision = effective_precision(bundle.manifest, opening.wishes)
        opener = GraphOpener(bundle, opening)
        self._describer = open_describer(bundle, opener.open)
        self._cnn = opener.open("cnn") if bundle.manifest.cnn else None
        self._keyframe_graph = opener.open("keyframes") if "keyframes" in self.stages else None
        self.places: dict[str, Place] = opener.places  # by graph
        bundle.must_be_unchanged()  # what has been opened is what was hashed
        self._video = video

    def extract(self, clip: Clip) -> ClipFeatures:
        """The clip's embeddings (paper eqs. 3 to 7). Same clip and bundle, same machine: same bytes.

        Raises DataError with a named reason when the file cannot be used (video.py lists the codes)
        or a network's output is not finite.
        """
        seeds = clip_seeds(self.manifest.extraction_seed, clip.sha256)
        stages = dict.fromkeys(self.stages, 0.0)

        with timed(stages, "decode"):
            candidates = self._video.candidates(clip.path)
        chosen = self._choose(candidates, seeds.clusters, stages)
        with timed(stages, "decode"):
            vlm_rgb, cnn_rgb = self._read(candidates, chosen)
        drawn, vlm_embedding, caption = self._describe(vlm_rgb, seeds.draw, stages)
        cnn_embedding = self._embed_motion(cnn_rgb, stages)

        shown = chosen.vlm if len(chosen.vlm) else chosen.cnn
        return ClipFeatures(
            vlm=_finite(vlm_embedding, 0 if self.manifest.vlm is None else self.manifest.vlm.width, "vlm", clip),
            cnn=_finite(cnn_embedding, 0 if self.manifest.cnn is None else self.manifest.cnn.width, "cnn", clip),
            caption=caption,
            keyframe=drawn,
            keyframe_times_s=tuple(candidates.t_s[shown].tolist()),
            fingerprint=self.manifest.fingerprint,
            precision=self.precision,
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

    def _choose(self, candidates: Candidates, seed: int, stages: dict[str, float]) -> _Chosen:
        """Paper eq. 3: one clustering per number of frames, all over the same candidates' features."""
        rule, vlm, cnn = self.manifest.keyframes, self.manifest.vlm, self.manifest.cnn
        none = np.empty(0, dtype=np.int64)
        uniform = spread_indices(len(candidates.pixels), cnn.frames) if cnn else none
        if self._keyframe_graph is None:
            return _Chosen(none, uniform)
        with timed(stages, "keyframes"):
            features = self._keyframe_graph.run({"frames": candidates.pixels})["features"]
            seen = pick_keyframes(features, rule.count, seed) if vlm else none
            if cnn is None or cnn.choice == "uniform":
                return _Chosen(seen, uniform)
            same = vlm is not None and cnn.frames == rule.count
            return _Chosen(seen, seen if same else pick_keyframes(features, cnn.frames, seed))

    def _read(self, candidates: Candidates, chosen: _Chosen) -> tuple[Rgb, Rgb]:
        """The chosen frames at full size, for each part; a frame that both see is fetched once."""
        wanted = np.unique(np.concatenate([chosen.vlm, chosen.cnn]))
        rgb = self._video.keyframes(candidates, wanted).rgb
        return rgb[np.searchsorted(wanted, chosen.vlm)], rgb[np.searchsorted(wanted, chosen.cnn)]

    def _describe(
        self, keyframes: Rgb, seed: int, stages: dict[str, float]
    ) -> tuple[int, npt.NDArray[np.float32], Caption]:
        """Paper eqs. 4 to 6: which keyframe was drawn first, the embedding, and that keyframe's caption."""
        spec = self.manifest.vlm
        if spec is None or self._describer is None:
            return -1, _NOTHING, _NO_CAPTION
        drawn = draw_keyframes(len(keyframes), spec.captioned_frames, seed)
        with timed(stages, "vision"):
            pixels = prepare_frames(keyframes[list(drawn)], spec.preprocessing)
        vector, caption = self._describer.describe(pixels, stages)
        return drawn[0], vector, caption

    def _embed_motion(self, frames: Rgb, stages: dict[str, float]) -> npt.NDArray[np.float32]:
        """Paper eq. 7."""
        spec = self.manifest.cnn
        if spec is None or self._cnn is None:
            return _NOTHING
        with timed(stages, "cnn"):
            pixels = prepare_frames(frames, spec.preprocessing)
            (vector,) = self._cnn.run({"frames": pixels.transpose(1, 0, 2, 3)[None]})["embedding"]
        return np.asarray(vector)


def open_extractor(
    bundle: Path,
    *,
    threads: int | None = None,
    limits: DecodeLimits | None = None,
    trusted: TrustedKeys = (),
    opening: Opening | None = None,
) -> Extractor:
    """Check the bundle, open its graphs and make the decoder ready.

    ``opening`` says where the graphs may run; ``threads`` is short for its field of that name. ``trusted``:
    keys one of which must have signed the bundle; none given, anybody's will do. Raises DataError for a
    bundle that is not what was exported, SettingsError ``no_backend`` when a graph cannot run where it
    should, MissingExtra when a package of ``flamest[agent]`` is not installed.
    """
    opening = opening or Opening(threads=threads)
    checked = open_bundle(bundle, trusted)
    _check_frames(checked)
    if "keyframes" in stages_of(checked.manifest):
        load_clustering()
    video = VideoDecoder(checked.manifest.keyframes, limits)
    try:
        video.start()  # it gets ready while the graphs are opened
        return Extractor(checked, video, opening)
    except BaseException:
        video.close()
        raise


def _check_frames(bundle: Bundle) -> None:
    """The frames that the manifest picks for graph ``cnn`` are as many as it says that the graph reads."""
    spec = bundle.manifest.cnn
    if spec is None:
        return
    for tensor in bundle.manifest.graphs["cnn"].inputs:
        if tensor.name == "frames" and tensor.shape[2:3] != (spec.frames,):
            raise DataError(
                f"{bundle.path}: its manifest picks {spec.frames} frames, its graph 'cnn' reads {tensor.shape[2]}",
                fix="export the bundle again with this version of flamest-export",
            )


def _finite(vector: npt.NDArray[np.float32], width: int, whose: str, clip: Clip) -> npt.NDArray[np.float32]:
    """The vector itself, when it is what the manifest promises."""
    if vector.shape != (width,) or not np.isfinite(vector).all():
        raise DataError(
            f"{printable_path(clip.path)}: part '{whose}' gave {vector.dtype}{list(vector.shape)}, "
            f"expected {width} finite numbers",
            code="not_finite",
        )
    return vector
