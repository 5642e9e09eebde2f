"""A clip's file -> the inputs of its networks: decoding, keyframes (paper eq. 3), resizing.

Clips are independent, so several readers work at once, ahead of the networks (read_ahead.py).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ..backends.session import Session, check_shape
from ..bundle.manifest import Manifest
from ..clip_records import Candidates, Clip, stages_of, timed
from ..keyframes import Indices, clip_seeds, draw_keyframes, pick_keyframes, spread_indices
from .decoder import CRASH_CODES, VideoDecoder
from .preprocessing import Pixels, Rgb, prepare_frames

_NO_PIXELS: Pixels = np.empty(0, dtype=np.float32)
_NO_ROWS: Indices = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class PreparedClip:
    """The inputs of a clip's networks. A part that the extractor lacks is empty."""

    clip: Clip
    captioned: npt.NDArray[np.float32]  # [F, 3, S, S], the keyframes to caption, the drawn one first
    cnn_frames: npt.NDArray[np.float32]  # [3, K, S, S], the frames of graph cnn
    keyframe: int  # index of ``captioned[0]`` among the keyframes; -1 for none
    times_s: tuple[float, ...]  # seconds from clip start, of the first part's frames
    stages_ms: dict[str, float]  # decode, keyframes, prepare
    warnings: tuple[str, ...]

    @property
    def frames(self) -> int:
        """Number of captioned frames."""
        return len(self.captioned)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Row numbers of candidates, not decreasing; empty for a part that the extractor lacks."""

    vlm: Indices
    cnn: Indices


class KeyframeFeatures:
    """Graph ``keyframes``, shared by several readers: one run at a time, on all cores."""

    def __init__(self, graph: Session) -> None:
        self._graph = graph
        self._lock = threading.Lock()

    def of(self, candidates: Candidates) -> npt.NDArray[np.float32]:
        """float32 [N, C], a row per candidate."""
        with self._lock:
            features = self._graph.run({"frames": candidates.pixels}, ["features"])["features"]
        return check_shape(features, (len(candidates.pixels), None), output="features")


class ClipReader:
    """Reads clips with a decoder process of its own. One thread at a time.

    ``features``: clusters the frames; None where they are spread evenly.
    """

    def __init__(self, manifest: Manifest, video: VideoDecoder, features: KeyframeFeatures | None) -> None:
        self._manifest = manifest
        self._features = features
        self._stages = tuple(name for name in stages_of(manifest) if name in ("decode", "keyframes", "prepare"))
        self.video = video

    def read(self, clip: Clip) -> PreparedClip:
        """Read a clip. Raises DataError with a code of decoder.py when the file cannot be used.

        A clip during which the decoder process ended is read once more, in a fresh process, before it is rejected.
        """
        try:
            return self._read(clip)
        except DataError as error:
            if error.code not in CRASH_CODES:
                raise
        return self._read(clip)

    def _read(self, clip: Clip) -> PreparedClip:
        seeds = clip_seeds(self._manifest.extraction_seed, clip.sha256)
        stages = dict.fromkeys(self._stages, 0.0)
        with timed(stages, "decode"):
            candidates = self.video.candidates(clip.path)
        chosen = self._choose(candidates, seeds.clusters, stages)
        with timed(stages, "decode"):
            vlm_rgb, cnn_rgb = self._full_size(candidates, chosen)
        with timed(stages, "prepare"):
            drawn, captioned = self._captioned(vlm_rgb, seeds.draw)
            cnn_frames = self._cnn_frames(cnn_rgb)
        shown = chosen.vlm if len(chosen.vlm) else chosen.cnn
        return PreparedClip(
            clip=clip,
            captioned=captioned,
            cnn_frames=cnn_frames,
            keyframe=drawn,
            times_s=tuple(candidates.t_s[shown].tolist()),
            stages_ms=stages,
            warnings=candidates.warnings,
        )

    def close(self) -> None:
        self.video.close()

    def _choose(self, candidates: Candidates, seed: int, stages: dict[str, float]) -> _Chosen:
        """Choose each part's frames (paper eq. 3): one clustering per number of frames, all over the same features."""
        rule, vlm, cnn = self._manifest.keyframes, self._manifest.vlm, self._manifest.cnn
        uniform = spread_indices(len(candidates.pixels), cnn.frames) if cnn else _NO_ROWS
        if self._features is None:
            return _Chosen(_NO_ROWS, uniform)
        with timed(stages, "keyframes"):
            features = self._features.of(candidates)
            clustered = pick_keyframes(features, rule.count, seed) if vlm else _NO_ROWS
            if cnn is None or cnn.choice == "uniform":
                return _Chosen(clustered, uniform)
            same = vlm is not None and cnn.frames == rule.count
            return _Chosen(clustered, clustered if same else pick_keyframes(features, cnn.frames, seed))

    def _full_size(self, candidates: Candidates, chosen: _Chosen) -> tuple[Rgb, Rgb]:
        """The chosen frames for each part; a frame of both is fetched once."""
        wanted = np.unique(np.concatenate([chosen.vlm, chosen.cnn]))
        rgb = self.video.keyframes(candidates, wanted).rgb
        return rgb[np.searchsorted(wanted, chosen.vlm)], rgb[np.searchsorted(wanted, chosen.cnn)]

    def _captioned(self, keyframes: Rgb, seed: int) -> tuple[int, Pixels]:
        """The index of the drawn keyframe and all frames to caption (paper eq. 4)."""
        spec = self._manifest.vlm
        if spec is None:
            return -1, _NO_PIXELS
        drawn = draw_keyframes(len(keyframes), spec.captioned_frames, seed)
        return drawn[0], prepare_frames(keyframes[list(drawn)], spec.preprocessing)

    def _cnn_frames(self, frames: Rgb) -> Pixels:
        spec = self._manifest.cnn
        if spec is None:
            return _NO_PIXELS
        return np.ascontiguousarray(prepare_frames(frames, spec.preprocessing).transpose(1, 0, 2, 3))
