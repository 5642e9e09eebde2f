"""Frames to times: the video's own, also where its rate varies; a rate where it has none."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from flamest.agent.annotations.annotation import Annotation, FrameRange, Unusable
from flamest.agent.annotations.frame_spans import SpanReader
from flamest.base.errors import DataError
from flamest.runtime.clip_records import FrameTimes, Segment
from flamest.runtime.video.decoder import VideoDecoder


class Times:
    """Frame times that are given."""

    def __init__(self, *times, end=None, exact=True):
        self._answer = FrameTimes(np.array(times, np.int64), np.zeros(1, np.int64), end or times[-1] + 40_000, exact)
        self.asked = 0

    def frame_times(self, path):
        self.asked += 1
        return self._answer


class Broken:
    def frame_times(self, path):
        raise DataError("no video", fix="none", code="video_damaged")


def annotation(first, end, **more):
    return Annotation("line 1", "a.mp4", "walk", FrameRange(first, end), **more)


def write_video(path, ticks, rate=1000):
    """Write frames that are shown at ``ticks`` / ``rate`` seconds."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number * 9 % 255, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_of_a_variable_rate_have_their_own_times(tmp_path, suffix):
    ticks = [0, 40, 80, 500, 510, 520, 2000, 2040]
    path = tmp_path / f"variable.{suffix}"
    write_video(path, ticks)
    decoder = VideoDecoder(None)
    try:
        spans = SpanReader(decoder)
        for first in range(len(ticks) - 1):
            for end in range(first + 1, len(ticks)):
                assert spans.segment(annotation(first, end), path) == Segment(ticks[first] * 1000, ticks[end] * 1000)
        last = spans.segment(annotation(6, 8), path)
    finally:
        decoder.close()
    assert last.start_us == 2_000_000
    assert last.end_us > 2_040_000


def test_a_videos_times_are_read_once(tmp_path):
    times = Times(0, 40_000, 80_000)
    spans = SpanReader(times)
    for _ in range(3):
        assert spans.segment(annotation(1, 3), tmp_path / "a.mp4") == Segment(40_000, 120_000)
    assert times.asked == 1


def test_seconds_and_whole_videos_open_nothing(tmp_path):
    spans = SpanReader(Broken())
    seconds = Annotation("line 1", "a.mp4", "walk", Segment(5, 7))
    assert spans.segment(seconds, tmp_path) == Segment(5, 7)
    assert spans.segment(Annotation("line 1", "a.mp4", "walk", None), tmp_path) is None


def test_a_range_that_ends_after_the_video_is_cut_and_noted(tmp_path):
    spans = SpanReader(Times(0, 40_000))
    assert spans.segment(annotation(1, 9), tmp_path / "a.mp4") == Segment(40_000, 80_000)
    assert list(spans.notes) == ["a.mp4: ranges end after the video, which has 2 frames"]


@pytest.mark.parametrize(
    ("timer", "fps", "more", "span", "code"),
    [
        (Times(0, 40_000), None, {}, (2, 3), "after_video"),
        (Times(0, 40_000), 25.0, {"counts_itself": True}, (50, 60), "after_video"),
        (Broken(), None, {}, (0, 1), "no_frame_rate"),
        (Times(0, 40_000, exact=False), None, {}, (0, 1), "no_frame_rate"),
        (Times(0, 0, end=40_000), None, {}, (0, 1), "empty_segment"),
        (Broken(), 1e9, {}, (0, 1), "empty_segment"),
    ],
)
def test_frames_without_times_are_named(tmp_path, timer, fps, more, span, code):
    with pytest.raises(Unusable) as raised:
        SpanReader(timer, fps).segment(annotation(*span, **more), tmp_path)
    assert raised.value.code == code


def test_fps_counts_where_the_video_has_no_times(tmp_path):
    spans = SpanReader(Broken(), 20.0)
    assert spans.segment(annotation(10, 30), tmp_path) == Segment(500_000, 1_500_000)
    assert spans.used_fps
    own = SpanReader(Times(0, 40_000, 80_000), 20.0)
    assert own.segment(annotation(1, 2), tmp_path) == Segment(40_000, 80_000)
    assert not own.used_fps


def test_a_tool_that_counts_itself_is_read_at_its_rate(tmp_path):
    times = Times(*range(0, 4_000_000, 40_000))
    given = SpanReader(times, 24.0).segment(annotation(24, 48, counts_itself=True), tmp_path)
    stated = SpanReader(times).segment(annotation(24, 48, counts_itself=True, counted_rate=24.0), tmp_path)
    assert given == stated == Segment(1_000_000, 2_000_000)
    spans = SpanReader(times)
    assert spans.segment(annotation(24, 48, counts_itself=True), tmp_path) == Segment(960_000, 1_920_000)
    assert "give --fps" in next(iter(spans.notes))
