"""Segments of one file: the frames that whole decoding gives there, and little else is decoded."""

import math
import os
import shutil
from fractions import Fraction

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from flamest.runtime.clip_records import Segment
from flamest.runtime.keyframes import uniform_indices
from flamest.runtime.video import open_video
from flamest.runtime.video.decoded_segment import DecodedSegment
from flamest.runtime.video.decoder import DecodeLimits, VideoDecoder
from flamest.runtime.video.decoder_messages import OpenClip
from flamest.runtime.video.open_video import OpenVideo
from flamest.runtime.video.preprocessing import FrameInput

SMALL = FramePreprocessing(size=24, fit="crop", filter="bilinear", mean=(0.45,) * 3, std=(0.225,) * 3)
RULE = KeyframeRule(count=8, candidates=32, preprocessing=SMALL, feature_width=1, space="")
FORM = FrameInput(SMALL, whole_bytes=False)
FRAMES, GROUP = 90, 12
KINDS = {
    "h264.mp4": ("libx264", {}),
    "b_frames.mp4": ("libx264", {"bf": "2"}),
    "open_groups.mp4": ("libx264", {"bf": "2", "x264-params": "open-gop=1"}),
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1"}),
    "one_group.mp4": ("libx264", {"g": "1000"}),
    "b_frames.ts": ("libx264", {"bf": "2"}),
    "b_frames.avi": ("libx264", {"bf": "2"}),  # states times in the order of decoding
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4_b.avi": ("mpeg4", {"bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}),
    "vp9.webm": ("libvpx-vp9", {}),
    "vp8.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "hevc.mkv": ("libx265", {}),
    "wmv2.wmv": ("wmv2", {}),
    "flv1.flv": ("flv", {}),
}
FROM_THE_BEGINNING = {"refresh.mp4", "one_group.mp4", "b_frames.avi"}  # no other key frame, or no usable times


def write(path, codec="libx264", options=None, *, times=None, first=0, frames=FRAMES):
    """A video of 25 frames a second, or with ``times`` (ticks of 1/1000 s), with a key frame every ``GROUP``."""
    import av.video.reformatter

    options, rate = {"g": str(GROUP), **(options or {})}, 25
    random = np.random.default_rng(frames)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = int(options.pop("g"))
        stream.codec_context.max_b_frames = int(options.pop("bf", "0"))
        stream.codec_context.options = options
        stream.codec_context.time_base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
        for number in range(frames):
            rgb = np.full((64, 96, 3), 40 + number % 200, np.uint8) + random.integers(0, 9, (64, 96, 3)).astype(
                np.uint8
            )
            rgb[20:36, number % 80 : number % 80 + 16] = (250, 240, 60)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = first + (number if times is None else int(times[number]))
            frame.time_base = stream.codec_context.time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def shown(path):
    """Microseconds, pixels and key flag of every frame, decoded from the beginning by PyAV alone."""
    import av.video.reformatter

    first, latest, found = 0, 0, []
    converter = av.video.reformatter.VideoReformatter()  # a frame's own keeps threads as long as the frame lives
    with av.open(str(path)) as file:
        base, rate = file.streams.video[0].time_base, float(file.streams.video[0].average_rate or 25)
        for number, frame in enumerate(file.decode(video=0)):
            first = first if number else frame.pts or 0
            known = frame.pts is not None
            exact = int((frame.pts - first) * base * 10**6 + Fraction(1, 2)) if known else number * 1e6 / rate
            latest = max(latest, exact)
            rgb = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            found.append((latest, rgb, bool(frame.key_frame)))
    return found


def some_segments(times, count=14, seed=0):
    """Random ones, and ones whose ends are times of frames; in no order."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, times[-1], count)
    found = [Segment(int(start), int(start + random.integers(20_000, 1_500_000))) for start in starts]
    return found + [Segment(times[n], times[min(n + 9, len(times) - 1)] + 1) for n in range(0, len(times), 11)]


class Opened:
    """A video opened as the decoder process opens it, in this process."""

    def __init__(self, path, held_bytes=1 << 28, again_s=math.inf):
        self.fd, self._held = os.open(path, os.O_RDONLY), held_bytes
        self.video = OpenVideo(self.fd, 1 << 22, again_s=again_s)

    def segment(self, segment):
        return DecodedSegment(self.video, segment, OpenClip(32, FORM, 1 << 22, self._held, 10))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.video.close()
        os.close(self.fd)


def check(path, segments, *, group=GROUP, held_bytes=1 << 28):
    """Compare segments with whole decoding; returns frames decoded beyond a segment's own and a group, the most."""
    frames = shown(path)
    most = -FRAMES
    with Opened(path, held_bytes) as opened:
        for segment in segments:
            own = [rgb for t_us, rgb, _ in frames if segment.start_us <= t_us < segment.end_us]
            if not own:
                with pytest.raises(DataError) as caught:
                    opened.segment(segment)
                assert caught.value.code in {"segment_empty", "segment_outside"}
                continue
            got = opened.segment(segment)
            assert got.survey.frames == len(own), segment
            most = max(most, got.decoded - len(own) - group)
            expected = [own[number].tobytes() for number in uniform_indices(len(own), 32)]
            assert [rgb.tobytes() for rgb in got.rgb(range(len(expected)))] == expected, segment
    return most


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_segments_are_the_frames_that_whole_decoding_gives(tmp_path, name, in_order):
    path = write(tmp_path / name, *KINDS[name])
    times = [t_us for t_us, _, _ in shown(path)]
    segments = some_segments(times)
    most = check(path, sorted(segments) if in_order else segments)
    assert most <= 0 or name in FROM_THE_BEGINNING


@pytest.mark.parametrize(
    ("name", "times", "first"),
    [
        ("variable.mp4", np.cumsum(np.random.default_rng(1).integers(1, 400, FRAMES)), 0),
        ("variable.mkv", np.cumsum(np.random.default_rng(2).integers(1, 400, FRAMES)), 0),
        ("late.mkv", np.arange(FRAMES) * 40, 5_000),
        ("negative.mp4", np.arange(FRAMES) * 40, -2_000),
        ("pause.mkv", np.where(np.arange(FRAMES) < 50, 0, 3_600_000) + np.arange(FRAMES) * 40, 0),
    ],
)
def test_times_count_from_the_first_frame_at_any_rate(tmp_path, name, times, first):
    path = write(tmp_path / name, "libx264", {"bf": "2"}, times=times, first=first)
    found = [t_us for t_us, _, _ in shown(path)]
    shown_times = times[len(times) - len(found) :]  # MP4 does not show what is before zero
    assert found == [1000 * int(each - shown_times[0]) for each in shown_times]
    assert check(path, some_segments(found)) <= 0
    with Opened(path) as opened:
        listed = opened.video.frame_times()
    assert listed.exact
    assert listed.t_us.tolist() == found


def test_frame_times_name_every_frame_and_the_key_frames(clips, tmp_path):
    path = write(tmp_path / "a.mp4", options={"bf": "2"})
    with VideoDecoder(None) as decoder:
        times = decoder.frame_times(path)
    assert times.t_us.tolist() == [40_000 * number for number in range(FRAMES)]
    assert times.key_frames.tolist() == [number for number, frame in enumerate(shown(path)) if frame[2]]
    assert times.end_us == FRAMES * 40_000
    assert times.exact


def test_an_edit_list_that_skips_frames_moves_the_beginning(tmp_path):
    """MP4 with an edit list: its first second is decoded and not shown."""
    path = write(tmp_path / "cut.mp4")
    data = bytearray(path.read_bytes())
    edit = data.index(b"elst") + 12
    data[edit + 4 : edit + 8] = (12_800).to_bytes(4, "big")  # media time, ticks of 1/12800 s
    path.write_bytes(data)
    frames = shown(path)
    assert len(frames) == FRAMES - 25
    assert check(path, some_segments([t_us for t_us, _, _ in frames])) <= 0


def test_a_segment_is_decoded_once_when_its_frames_do_not_fit(tmp_path):
    path = write(tmp_path / "a.mp4", options={"bf": "2"})
    segment = Segment(1_000_000, 3_500_000)
    for room in (0, 200_000, 1 << 20):  # bytes: nothing, some, the likely candidates
        with Opened(path, room) as opened:
            got = opened.segment(segment)
            assert got.decoded <= got.survey.frames + GROUP
            assert len(got.candidate_frames(FORM)) == 32
            assert got.decoded <= got.survey.frames + GROUP
            shown_again = [rgb.tobytes() for rgb in got.rgb([0, 5, 31])]  # at full size, decoded again where not kept
            assert (got.decoded > got.survey.frames + GROUP) == (room < 1 << 20)
        with Opened(path) as opened:
            assert [rgb.tobytes() for rgb in opened.segment(segment).rgb([0, 5, 31])] == shown_again


def test_a_long_recording_seeks_instead_of_reading(tmp_path):
    """Thousands of frames between the segments: the container finds the key frame, or its packets are passed over."""
    for name in ("long.mp4", "long.mkv", "long.avi", "long.ts"):
        path = write(tmp_path / name, "mpeg4", frames=1500)
        times = [t_us for t_us, _, _ in shown(path)]
        assert check(path, [Segment(times[n], times[n] + 500_000) for n in (1400, 30, 1450, 700, 5)]) <= 0


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.avi", "long.ts"])
def test_a_container_that_seeks_wrongly_is_read_from_its_beginning(tmp_path, monkeypatch, name):
    """It lands a thousand frames further, at the end, or nowhere."""
    from flamest.runtime.video import frames_from_key

    path = write(tmp_path / name, "mpeg4", frames=1100)
    times = [t_us for t_us, _, _ in shown(path)]
    monkeypatch.setattr(frames_from_key.FramesFromKey, "_seek", lambda self, key: bool(list(self._packets)) and False)
    assert check(path, [Segment(times[n], times[n] + 500_000) for n in (1000, 30, 700)]) <= 0


def test_key_frames_that_are_none_are_found_out(tmp_path, monkeypatch):
    """A container may mark any packet: then the video is decoded from its beginning."""
    from flamest.runtime.video import packet_index

    path = write(tmp_path / "a.mp4", "mpeg4")
    made = packet_index.PacketIndex.__init__

    def all_keys(self, *given):
        made(self, *given)
        self._keys = np.arange(len(self))

    monkeypatch.setattr(packet_index.PacketIndex, "__init__", all_keys)
    check(path, some_segments([t_us for t_us, _, _ in shown(path)]))


def test_segments_outside_and_between_frames_have_codes_of_their_own(tmp_path):
    for name in ("a.mp4", "b_frames.avi"):
        path = write(tmp_path / name, options={"bf": "2"})
        with VideoDecoder(RULE) as decoder:
            for start, end, code in (
                (3.6, 5, "segment_outside"),
                (99, 100, "segment_outside"),
                (0.01, 0.02, "segment_empty"),
            ):
                with pytest.raises(DataError) as caught:
                    decoder.candidates(path, Segment.of_seconds(start, end))
                assert caught.value.code == code, (name, start)
                assert f"{name}#t={start:g},{end:g} " in caught.value.message
                assert "labels.csv" in caught.value.fix
            assert decoder.candidates(path, Segment.of_seconds(3, 3.6)).warnings == ()
            (warning,) = decoder.candidates(path, Segment.of_seconds(3, 4)).warnings
            assert "the video at 3.6 s" in warning


def test_times_of_candidates_count_from_the_segments_first_frame(tmp_path):
    path = write(tmp_path / "a.mp4")
    with VideoDecoder(RULE) as decoder:
        got = decoder.candidates(path, Segment(1_010_000, 1_500_000))
        np.testing.assert_allclose(got.t_s, 0.04 * np.arange(12), atol=1e-9)
        assert (got.frames, got.decoded) == (12, 15)  # from the key frame at 0.96 s, and the first of all
        assert decoder.candidates(path).frames == FRAMES
        assert decoder.candidates(path).decoded == FRAMES


def test_the_process_keeps_one_file_open_and_sees_that_it_changed(tmp_path):
    path, other = write(tmp_path / "a.mp4"), write(tmp_path / "b.mp4", frames=60)
    with VideoDecoder(RULE) as decoder:
        first = decoder.candidates(path, Segment(0, 1_000_000))
        held = set(os.listdir(f"/proc/{decoder.pid}/fd"))
        assert decoder.candidates(path, Segment(0, 1_000_000)).pixels.tobytes() == first.pixels.tobytes()
        assert set(os.listdir(f"/proc/{decoder.pid}/fd")) == held
        shutil.copy(other, path)
        assert decoder.frame_times(path).end_us == 60 * 40_000
        assert decoder.candidates(other, Segment(0, 9_000_000)).frames == 60
        assert len(os.listdir(f"/proc/{decoder.pid}/fd")) <= len(held)


def test_damage_within_a_segment_is_a_warning_or_a_code(tmp_path):
    path = write(tmp_path / "a.mp4", frames=120)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat")
    middle = (begin + data.index(b"moov")) // 2
    for position in range(middle, middle + 3000, 7):
        data[position] ^= 0x55
    path.write_bytes(data)
    found = []
    with VideoDecoder(RULE, DecodeLimits(timeout_s=20)) as decoder:
        for start in range(0, 4_800_000, 200_000):
            try:
                found.append(" ".join(decoder.candidates(path, Segment(start, start + 200_000)).warnings))
            except DataError as error:
                found.append(error.code)
    assert found[0] == found[-1] == ""
    assert any("damaged" in each for each in found)
    assert "segment_empty" not in found


@pytest.mark.parametrize("name", ["b_frames.avi", "one_group.mp4"])
def test_going_back_in_a_file_has_one_limit_for_all_segments(tmp_path, monkeypatch, name):
    path = write(tmp_path / name, *KINDS[name])
    seconds = iter(range(1000))
    monkeypatch.setattr(open_video.time, "process_time", lambda: next(seconds))
    with Opened(path, again_s=1.5) as opened:
        for start in (0, 1_000_000, 2_000_000):
            opened.segment(Segment(start, start + 500_000))
        for start in (1_900_000, 1_800_000):
            opened.segment(Segment(start, start + 500_000))
        with pytest.raises(DataError, match="going back") as caught:
            opened.segment(Segment(1_700_000, 2_200_000))
        assert caught.value.code == "video_timeout"
        assert opened.segment(Segment(2_400_000, 2_800_000)).survey.frames == 10
