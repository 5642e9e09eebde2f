"""Decoding of labelled clips to frames in memory."""

from __future__ import annotations

import av
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


def test_a_segment_is_decoded_alone_and_known_by_its_times(tmp_path, counting):
    """Of a video that brightens, the two halves are dark and bright."""
    with av.open(str(tmp_path / "day.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(40):
            picture = np.full((SIDE, SIDE, 3), 6 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    rows = ["path,label,start_s,end_s,group", "day.mp4,dark,0,2,a", "day.mp4,bright,2,4,b"]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    split = split_clips(tmp_path, test_share=0.0, seed=0)
    decoded = decode_clips(split, ClipShape(frames=2, size=SIDE - 4, margin=4), counting())
    means = dict(
        zip([video.label for video in split.videos], decoded.clips.pixels.mean(axis=(1, 2, 3, 4)), strict=True)
    )
    assert means["dark"] < 120 < means["bright"]
    (tmp_path / "labels.csv").write_text("\n".join(rows).replace(",4,b", ",3.5,b") + "\n")
    assert split_clips(tmp_path, test_share=0.0, seed=0).digest != split.digest
