"""Labelled videos decoded to small frames in memory, which the baselines train on.

FLAMeST's silos keep embeddings; the baselines need the frames in every epoch. Every clip is decoded once, in
the runtime's decoder process, and kept as bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...agent.training.shared_frames import joined_groups
from ...base.errors import DataError, UsageError
from ...base.progress import Progress
from ...runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from ...runtime.keyframes import spread_indices
from ...runtime.video.decoder import VideoDecoder
from ..datasets import groups_digest
from ..silos import LabelledVideo, held_out, labelled_videos

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
MEMORY_SHARE = 0.7  # of the free memory; more frames than that are refused before decoding


@dataclass(frozen=True)
class ClipShape:
    """Frames of a clip that are kept in memory, and those that a network sees."""

    frames: int  # that a network sees
    size: int  # pixels, height and width of what a network sees
    spare: int = 2  # frames kept per frame seen: training picks one at random, testing the middle one
    margin: int = 8  # pixels beyond ``size``: training crops at random, testing in the centre
    fit: Literal["crop", "stretch"] = "crop"  # of a frame that is not square
    filter: Literal["bicubic", "bilinear"] = "bilinear"

    @property
    def stored(self) -> tuple[int, int, int, int]:
        """Shape [T, S, S, 3] of one clip in memory."""
        side = self.size + self.margin
        return self.frames * self.spare, side, side, 3


@dataclass(frozen=True, eq=False)
class ClipSet:
    """N clips as bytes, with their classes."""

    shape: ClipShape
    pixels: Bytes  # [N, T, S, S, 3] as ``shape.stored``
    y: Rows  # int64 [N], indices into ``labels``
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Rows, random: np.random.Generator | None) -> Bytes:
        """Frames uint8 [len(rows), frames, size, size, 3]: augmented with ``random``, centred without.

        Augmentation draws one stored frame of every part, and one crop and one reflection for all frames of
        a clip (no class of the paper's data sets depends on left and right).
        """
        shape = self.shape
        out = np.empty((len(rows), shape.frames, shape.size, shape.size, 3), dtype=np.uint8)
        parts = np.arange(shape.frames) * shape.spare
        for place, row in enumerate(rows):
            if random is None:
                picked, top, left, mirrored = parts + shape.spare // 2, shape.margin // 2, shape.margin // 2, False
            else:
                picked = parts + random.integers(shape.spare, size=shape.frames)
                top, left = (int(start) for start in random.integers(shape.margin + 1, size=2))
                mirrored = bool(random.integers(2))
            chosen = self.pixels[row, picked, top : top + shape.size, left : left + shape.size]
            out[place] = chosen[:, :, ::-1] if mirrored else chosen
        return out


@dataclass(frozen=True)
class ClipSplit:
    """The clips of a folder, split into training and test before anything is decoded."""

    videos: tuple[LabelledVideo, ...]
    labels: tuple[str, ...]
    train: tuple[int, ...]  # rows of ``videos``
    test: tuple[int, ...]

    @property
    def record(self) -> dict[str, Any]:
        """For a result: sizes of both sides, and a digest of the test's groups, which a table compares with its own."""
        groups = joined_groups([video.group for video in self.videos], [video.extent for video in self.videos])
        held = groups_digest(groups[row] for row in self.test)
        return {"train": len(self.train), "test": len(self.test), "test_groups_sha256": held}

    @property
    def digest(self) -> str:
        """SHA-256 of names, labels, groups, file sizes and the split; part of a checkpoint's key."""
        lines = (f"{v.named(v.path.name)}\t{v.label}\t{v.group}\t{v.path.stat().st_size}" for v in self.videos)
        text = "\n".join(itertools.chain(lines, [str(self.train), str(self.test)]))
        return hashlib.sha256(text.encode()).hexdigest()


def split_clips(folder: Path, *, test_share: float, seed: int) -> ClipSplit:
    """Find the labelled clips of ``folder`` and hold out whole groups for the test (``test_share`` 0: none).

    Raises StorageError and DataError as ``labelled_videos`` does, DataError when nothing can be held out.
    """
    videos = labelled_videos(folder)
    train, test = held_out(videos, test_share, seed)
    if test_share and not len(test):
        raise DataError(
            f"the clips of {folder} are all of one group: none can be held out for the test",
            fix="give groups in labels.csv (path,label,group)",
        )
    labels = tuple(sorted({video.label for video in videos}))
    return ClipSplit(videos, labels, tuple(train.tolist()), tuple(test.tolist()))


@dataclass(frozen=True, eq=False)
class DecodedClips:
    """Decoded clips with their split, and the files that could not be decoded."""

    clips: ClipSet
    train: Rows  # rows of ``clips``
    test: Rows
    failed: tuple[str, ...]  # "NAME: reason"


def decode_clips(split: ClipSplit, shape: ClipShape, progress: Progress, *, processes: int = 2) -> DecodedClips:
    """Decode the clips of ``split``. ``progress`` advances by one per clip.

    A clip that cannot be decoded is left out and listed in ``failed``. Raises UsageError when the frames
    would not fit into memory, DataError when a class has no readable training clip.
    """
    _check_memory(len(split.videos), shape)
    pixels = np.empty((len(split.videos), *shape.stored), dtype=np.uint8)
    readable = np.ones(len(split.videos), dtype=bool)
    failed = []
    for row, outcome in _decode_all(split.videos, shape, processes):
        if isinstance(outcome, DataError):
            readable[row] = False
            failed.append(str(outcome))
        else:
            pixels[row] = outcome
        progress.advance()
    train, test = (
        np.array([row for row in rows if readable[row]], dtype=np.int64) for rows in (split.train, split.test)
    )
    y = np.array([split.labels.index(video.label) for video in split.videos], dtype=np.int64)
    lost = sorted(set(split.labels) - {split.labels[number] for number in y[train]})
    if lost or (split.test and not len(test)):
        missing = f"no readable training clip of class '{lost[0]}'" if lost else "no readable test clip"
        reason = f" ({failed[0]})" if failed else ""
        raise DataError(f"there is {missing}{reason}", fix="replace the damaged files, or leave out that class")
    return DecodedClips(ClipSet(shape, pixels, y, split.labels), train, test, tuple(failed))


def _check_memory(clips: int, shape: ClipShape) -> None:
    needed = clips * int(np.prod(shape.stored))
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    # SC_AVPHYS_PAGES counts the file cache as used, although the kernel gives it back on demand.
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    if needed > MEMORY_SHARE * free:
        raise UsageError(
            f"{clips} clips as {shape.frames * shape.spare} frames of {shape.size + shape.margin} pixels take "
            f"{needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free",
            fix="use fewer or smaller frames (--frames, --size), or a machine with more memory",
        )


def _decode_all(
    videos: Sequence[LabelledVideo], shape: ClipShape, processes: int
) -> Iterator[tuple[int, Bytes | DataError]]:
    """(row, pixels or the error of that clip) of every clip, in order."""
    workers = max(1, min(processes, len(videos)))
    with contextlib.ExitStack() as open_decoders:
        free: queue.SimpleQueue[VideoDecoder] = queue.SimpleQueue()
        for _ in range(workers):
            free.put(open_decoders.enter_context(VideoDecoder(_rule(shape))))

        def decode(video: LabelledVideo) -> Bytes | DataError:
            decoder = free.get()
            try:
                return _as_bytes(decoder.candidates(video.path, video.segment).pixels, shape)
            except DataError as error:
                return error
            finally:
                free.put(decoder)

        with ThreadPoolExecutor(max_workers=workers) as pool:
            try:
                yield from enumerate(pool.map(decode, videos))
            except BaseException:  # including Ctrl-C: do not decode the rest
                pool.shutdown(cancel_futures=True)
                raise


def _rule(shape: ClipShape) -> KeyframeRule:
    """A decoding rule for uniform frames with unchanged values (0 to 255)."""
    side = shape.size + shape.margin
    plain = FramePreprocessing(side, shape.fit, shape.filter, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    kept = shape.frames * shape.spare
    return KeyframeRule(count=kept, candidates=kept, preprocessing=plain, feature_width=1, space="none")


def _as_bytes(pixels: npt.NDArray[np.float32], shape: ClipShape) -> Bytes:
    """float32 [n, 3, S, S] of 0 to 255, n frames or fewer -> uint8 [T, S, S, 3]; frames of a short clip repeat."""
    kept = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)
    return kept[spread_indices(len(kept), shape.frames * shape.spare)]
