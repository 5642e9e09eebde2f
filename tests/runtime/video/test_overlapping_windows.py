"""Overlapping windows in a row: the frames of the same segments alone, each decoded once, and few in memory."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from flamest.runtime.clip_records import Segment
from flamest.runtime.video.decoded_segment import DecodedSegment
from flamest.runtime.video.decoder import DecodeLimits, VideoDecoder
from flamest.runtime.video.decoder_messages import OpenClip
from flamest.runtime.video.frame_buffer import frame_bytes
from flamest.runtime.video.open_video import OpenVideo
from flamest.runtime.video.overlap_frames import OverlapFrames

LIMIT, HELD = 1 << 22, 256 << 20


def segments_module():
    """tests/runtime/video/test_segments.py, for its videos of many kinds."""
    path = Path(__file__).with_name("test_segments.py")
    spec = importlib.util.spec_from_file_location("flamest_tests_segments", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


videos = segments_module()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def recording(folder, kind):
    path = folder / kind
    if not path.exists():
        videos.write(path, *videos.KINDS[kind])
    return path


def windows(length_us=960_000, stride_us=320_000, end_us=3_600_000):
    """Segments and where the next one begins; None after the last."""
    starts = list(range(0, end_us - length_us + 1, stride_us))
    return [
        (Segment(start, start + length_us), following)
        for start, following in zip(starts, [*starts[1:], None], strict=True)
    ]


def request(segment, next_us, held=HELD):
    return OpenClip(32, videos.FORM, LIMIT, held, 60, (segment.start_us, segment.end_us), next_us)


@pytest.mark.parametrize("kind", videos.KINDS)
def test_windows_that_share_frames_give_what_each_alone_gives(folder, kind):
    fd = os.open(recording(folder, kind), os.O_RDONLY)
    try:
        video, decoded, repeated = OpenVideo(fd, LIMIT), 0, 0
        for segment, next_us in windows():
            found = DecodedSegment(video, segment, request(segment, next_us))
            alone = OpenVideo(fd, LIMIT)
            expected = DecodedSegment(alone, segment, request(segment, None))
            assert found.survey.t_s.tolist() == expected.survey.t_s.tolist()
            for one, other in zip(
                found.candidate_frames(videos.FORM), expected.candidate_frames(videos.FORM), strict=True
            ):
                assert np.array_equal(one, other)
            for one, other in zip(found.rgb(range(0, 24, 5)), expected.rgb(range(0, 24, 5)), strict=True):
                assert np.array_equal(one, other)
            decoded, repeated = decoded + found.decoded, repeated + expected.decoded
            alone.close()
        assert decoded <= videos.FRAMES + 2 * videos.GROUP, "about once each"
        assert repeated > 2 * decoded, "without sharing many times"
        video.close()
    finally:
        os.close(fd)


def test_a_limit_of_memory_drops_shared_frames_and_changes_no_answer(folder):
    fd = os.open(recording(folder, "one_group.mp4"), os.O_RDONLY)
    try:
        small, large = OpenVideo(fd, LIMIT), OpenVideo(fd, LIMIT)
        for segment, next_us in windows(end_us=2_000_000):
            little = DecodedSegment(small, segment, request(segment, next_us, held=3 * 96 * 64))
            much = DecodedSegment(large, segment, request(segment, next_us))
            assert little.survey.t_s.tolist() == much.survey.t_s.tolist()
            assert all(
                np.array_equal(one, other)
                for one, other in zip(little.rgb(range(24)), much.rgb(range(24)), strict=True)
            )
        assert small.newly_decoded() + little.decoded > 0
    finally:
        os.close(fd)


def test_shared_frames_stay_within_their_bytes_however_many_are_offered(folder):
    fd = os.open(recording(folder, "h264.mp4"), os.O_RDONLY)
    try:
        video = OpenVideo(fd, LIMIT)
        pictures = list(video.ways(Segment(0, 3_600_000))[0]())
        size = frame_bytes(pictures[0].frame)
        for fitting in (0, 10, len(pictures)):
            shared = OverlapFrames(Segment(0, 3_600_000), 0, fitting * size)
            for picture in pictures:
                shared.offer(picture)
                assert len(shared._pictures) <= fitting
            assert (shared.rest_of(Segment(1000, 4_000_000)) is not None) == (fitting == len(pictures))
    finally:
        os.close(fd)


def test_the_decoder_process_decodes_each_frame_of_overlapping_windows_once(folder):
    path = recording(folder, "one_group.mp4")
    with VideoDecoder(videos.RULE, DecodeLimits()) as decoder:
        decoded = 0
        for segment, next_us in windows():
            candidates = decoder.candidates(path, segment, next_us=next_us)
            decoder.keyframes(candidates, np.arange(0, 24, 3))
            decoded += candidates.decoded
    assert decoded <= videos.FRAMES
