"""A clip's file -> the inputs of its networks: decoding, keyframes (paper eq. 3), frames in the networks' form.

Clips are independent, so several readers work at once, ahead of the networks (read_ahead.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ..bundle.manifest import Manifest
from ..clip_records import Candidates, Clip, stages_of, timed
from ..keyframe_features import KeyframeFeatures
from ..keyframes import Indices, clip_seeds, draw_keyframes, pick_keyframes, spread_indices
from .decoder import CRASH_CODES, DecodeLimits, VideoDecoder
from .preprocessing import FrameInput, Frames, frame_input

_NO_FRAMES: Frames = np.empty(0, dtype=np.uint8)
_NO_ROWS: Indices = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class PreparedClip:
    """The inputs of a clip's networks. A part that the extractor lacks is empty."""

    clip: Clip
    # The keyframes to caption, the drawn one first: uint8 [F, S, S, 3], or float32 [F, 3, S, S] where the graph takes
    # them normalised.
    captioned: npt.NDArray[Any]
    cnn_frames: npt.NDArray[Any]  # of graph cnn: uint8 [K, S, S, 3] or float32 [3, K, S, S]
    keyframe: int  # index of ``captioned[0]`` among the keyframes; -1 for none
    times_s: tuple[float, ...]  # seconds from clip start, of the first part's frames
    stages_ms: dict[str, float]  # decode, keyframes, prepare
    warnings: tuple[str, ...]
    cnn2_frames: npt.NDArray[Any] = field(default_factory=lambda: _NO_FRAMES)  # of graph cnn2

    @property
    def frames(self) -> int:
        """Number of captioned frames."""
        return len(self.captioned)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Row numbers of candidates, not decreasing; empty for a part that the extractor lacks."""

    vlm: Indices
    cnn: dict[str, Indices]  # by graph


class ClipReader:
    """Reads clips with a decoder process of its own (``open_decoder``). One thread at a time.

    ``features``: clusters the frames; None where they are spread evenly. Raises DataError ``bad_graph`` for a graph
    that takes whole bytes where the manifest gives it fractions.
    """

    def __init__(self, manifest: Manifest, video: VideoDecoder, features: KeyframeFeatures | None) -> None:
        self._manifest = manifest
        self._features = features
        self._captioned = _captioned_form(manifest)
        self._cnn = {
            graph: frame_input(manifest.graphs[graph], part.preprocessing)
            for graph, part in manifest.spatio_temporal.items()
        }
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
            candidates = self.video.candidates(clip.path, clip.segment, next_us=clip.next_us)
        chosen = self._choose(candidates, seeds.clusters, stages)
        drawn = self._drawn(chosen, seeds.draw)
        captioned, of_cnn = self._prepared(candidates, chosen.vlm[list(drawn)], chosen.cnn, stages)
        shown = chosen.vlm if len(chosen.vlm) else chosen.cnn["cnn"]
        return PreparedClip(
            clip=clip,
            captioned=captioned,
            cnn_frames=of_cnn.get("cnn", _NO_FRAMES),
            cnn2_frames=of_cnn.get("cnn2", _NO_FRAMES),
            keyframe=drawn[0] if drawn else -1,
            times_s=tuple(candidates.t_s[shown].tolist()),
            stages_ms=stages,
            warnings=candidates.warnings,
        )

    def close(self) -> None:
        self.video.close()

    def _choose(self, candidates: Candidates, seed: int, stages: dict[str, float]) -> _Chosen:
        """Choose each part's frames (paper eq. 3): one clustering per number of frames, all over the same features."""
        rule, parts = self._manifest.keyframes, self._manifest.spatio_temporal
        rows = {graph: spread_indices(len(candidates.pixels), part.frames) for graph, part in parts.items()}
        if self._features is None:
            return _Chosen(_NO_ROWS, rows)
        with timed(stages, "keyframes"):
            features = self._features.of(candidates)
            clustered: dict[int, Indices] = {}  # by number of frames
            if self._manifest.vlm is not None:
                clustered[rule.count] = pick_keyframes(features, rule.count, seed)
            captioned = clustered.get(rule.count, _NO_ROWS)
            for graph, part in parts.items():
                if part.choice == "keyframes":
                    if part.frames not in clustered:
                        clustered[part.frames] = pick_keyframes(features, part.frames, seed)
                    rows[graph] = clustered[part.frames]
            return _Chosen(captioned, rows)

    def _drawn(self, chosen: _Chosen, seed: int) -> tuple[int, ...]:
        """Indices among the keyframes of the drawn one and all others to caption (paper eq. 4)."""
        spec = self._manifest.vlm
        return draw_keyframes(len(chosen.vlm), spec.captioned_frames, seed) if spec else ()

    def _prepared(
        self, candidates: Candidates, captioned: Indices, cnn: dict[str, Indices], stages: dict[str, float]
    ) -> tuple[Frames, dict[str, Frames]]:
        """All parts' frames, read and prepared by the decoder process; those of several frames by graph."""
        wanted = [] if self._captioned is None else [(captioned, self._captioned)]
        wanted += [(cnn[graph], form) for graph, form in self._cnn.items()]
        taken = {"decode": 0.0}
        with timed(taken, "decode"):
            done = self.video.prepared(candidates, wanted)
        spent = min(max(done.prepare_ms, 0.0), taken["decode"])  # a report of a process that reads untrusted files
        stages["decode"] += taken["decode"] - spent
        stages["prepare"] += spent
        parts = list(done.parts)
        first = parts.pop(0) if self._captioned else _NO_FRAMES
        with timed(stages, "prepare"):
            of_cnn = zip(self._cnn.items(), parts, strict=True)
            return first, {graph: _over_time(frames, form) for (graph, form), frames in of_cnn}


def open_decoder(manifest: Manifest, limits: DecodeLimits | None = None) -> VideoDecoder:
    """A decoder whose candidates have the form that graph ``keyframes`` takes: bytes where there is none.

    Raises as ``VideoDecoder``.
    """
    if not manifest.has_keyframes:
        return VideoDecoder(manifest.keyframes, limits, whole_bytes=True)
    form = frame_input(manifest.graphs["keyframes"], manifest.keyframes.preprocessing)
    return VideoDecoder(manifest.keyframes, limits, whole_bytes=form.whole_bytes)


def _captioned_form(manifest: Manifest) -> FrameInput | None:
    """The form of the frames of graph ``vision``, or of ``clip``; None without a vision-language part."""
    if manifest.vlm is None:
        return None
    graphs = manifest.graphs
    return frame_input(
        graphs["clip"] if "clip" in manifest.needed_graphs else graphs["vision"], manifest.vlm.preprocessing
    )


def _over_time(frames: Frames, form: FrameInput) -> Frames:
    """Frames float32 [K, 3, S, S] as graph ``cnn`` takes them, [3, K, S, S]; bytes as they are."""
    return frames if form.whole_bytes else np.ascontiguousarray(frames.swapaxes(0, 1))
