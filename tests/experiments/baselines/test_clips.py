"""Decoding of labelled clips to frames in memory."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.base.errors import UsageError
from flamest.experiments.baselines.clips import ClipShape, decode_clips, split_clips

SIDE = 32


def test_decoded_clips_hold_out_groups_and_skip_damaged_files(clips, tmp_path, counting):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in clips.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "red_moving-3.mp4").write_bytes(b"no video at all")
    split = split_clips(folder, test_share=0.2, seed=0)
    assert not {split.videos[row].group for row in split.train} & {split.videos[row].group for row in split.test}
    decoded = decode_clips(split, ClipShape(frames=2, size=SIDE, margin=4), counting())
    assert len(decoded.failed) == 1
    assert "red_moving-3.mp4" in decoded.failed[0]
    assert len(decoded.train) + len(decoded.test) == 35
    still = decoded.clips.take(decoded.test[:2], None)
    assert still.shape == (2, 2, SIDE, SIDE, 3)
    assert np.array_equal(still, decoded.clips.take(decoded.test[:2], None))
    assert not np.array_equal(still, decoded.clips.take(decoded.test[:2], np.random.default_rng(1)))


def test_frames_beyond_memory_are_refused_before_decoding(clips, counting):
    with pytest.raises(UsageError, match="GB of memory") as caught:
        decode_clips(split_clips(clips, test_share=0.2, seed=0), ClipShape(frames=4096, size=4096), counting())
    assert "--size" in caught.value.fix
