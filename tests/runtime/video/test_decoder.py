"""Real files through the real decoder process: what is read, and that nothing breaks it."""

import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flamest.base.child_process import ChildProcess, ChildProtocolError
from flamest.base.errors import DataError, InvariantError, SettingsError
from flamest.runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from flamest.runtime.video.decoder import DecodeLimits, VideoDecoder
from flamest.runtime.video.decoder_messages import (
    DECODER_BROKEN,
    DecodeRefused,
    FramesListed,
    FramesRead,
    Opened,
)
from flamest.runtime.video.preprocessing import FrameInput, frames_for, prepare_frames

SMALL = FramePreprocessing(size=24, fit="crop", filter="bilinear", mean=(0.45,) * 3, std=(0.225,) * 3)
RULE = KeyframeRule(count=8, candidates=32, preprocessing=SMALL, feature_width=1, space="")
ALL = np.arange(32)
IMAGE = FrameInput(FramePreprocessing(30, "stretch", "bicubic", (0.4,) * 3, (0.3,) * 3), whole_bytes=True)
MOTION = FrameInput(FramePreprocessing(17, "crop", "bilinear-bytes", (0.4,) * 3, (0.3,) * 3), whole_bytes=True)
FLOATS = FrameInput(SMALL, whole_bytes=False)


@pytest.fixture(scope="module")
def decoder():
    with VideoDecoder(RULE) as opened:
        yield opened


def refused(decoder, path):
    with pytest.raises(DataError) as caught:
        decoder.candidates(path)
    assert str(path) in caught.value.message
    return caught.value.code


def decoded(path):
    """Every frame as PyAV gives it, here in this process: the reference."""
    import av

    with av.open(str(path)) as file:
        return [(frame.to_ndarray(format="rgb24"), frame.time) for frame in file.decode(video=0)]


# --- what is read ---


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx265"), ("a.webm", "libvpx-vp9"), ("a.ts", "mpeg2video")],
)
def test_candidates_and_keyframes_are_the_frames_that_were_decoded(decoder, clips, tmp_path, name, codec):
    path = clips.write_clip(tmp_path / name, frames=50, codec=codec)
    frames = decoded(path)
    candidates = decoder.candidates(path)
    middle = [(2 * part + 1) * len(frames) // 64 for part in range(32)]
    assert candidates.frames == len(frames)
    assert candidates.pixels.dtype == np.float32
    expected = prepare_frames(np.stack([frames[index][0] for index in middle]), SMALL)
    assert candidates.pixels.tobytes() == expected.tobytes()
    np.testing.assert_allclose(candidates.t_s, [frames[index][1] - frames[0][1] for index in middle], atol=1e-9)
    chosen = np.array([0, 3, 3, 9, 15, 20, 30, 31])
    keyframes = decoder.keyframes(candidates, chosen)
    assert keyframes.rgb.tobytes() == np.stack([frames[middle[row]][0] for row in chosen]).tobytes()
    assert (keyframes.t_s == candidates.t_s[chosen]).all()


def test_frames_for_several_networks_come_in_each_ones_form(decoder, clips, tmp_path):
    candidates = decoder.candidates(clips.write_clip(tmp_path / "a.avi", frames=50, noise=20))
    rgb = decoder.keyframes(candidates, ALL).rgb
    rows = {MOTION: np.array([0, 3, 3, 31]), IMAGE: np.array([20, 3, 9]), None: np.array([5, 1]), FLOATS: np.array([7])}
    done = decoder.prepared(candidates, [(chosen, form) for form, chosen in rows.items()])
    assert done.prepare_ms > 0
    for (form, chosen), part in zip(rows.items(), done.parts, strict=True):
        expected = rgb[chosen] if form is None else frames_for(rgb[chosen], form)
        assert part.shape == expected.shape
        assert part.dtype == expected.dtype
        assert part.flags.aligned
        assert part.tobytes() == expected.tobytes()


def test_candidates_of_whole_bytes_are_a_quarter_of_the_size(clips, tmp_path):
    path = clips.write_clip(tmp_path / "a.avi", frames=50, noise=20)
    rounded = FramePreprocessing(24, "crop", "bilinear-bytes", SMALL.mean, SMALL.std)
    rule = KeyframeRule(count=8, candidates=32, preprocessing=rounded, feature_width=1, space="")
    with VideoDecoder(rule, whole_bytes=True) as decoder:
        candidates = decoder.candidates(path)
        rgb = decoder.keyframes(candidates, ALL).rgb
    assert candidates.pixels.dtype == np.uint8
    assert candidates.pixels.tobytes() == frames_for(rgb, FrameInput(rounded, whole_bytes=True)).tobytes()


@pytest.mark.parametrize(("height", "width"), [(2, 96), (96, 2), (50, 34), (2160, 3840)])
def test_clips_of_odd_sizes_are_prepared_as_single_frames_are(decoder, clips, tmp_path, height, width):
    rgb = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    path = clips.write_clip(tmp_path / "odd.avi", rgb)
    candidates = decoder.candidates(path)
    whole = decoder.keyframes(candidates, np.arange(3)).rgb
    assert whole.shape == (3, height, width, 3)
    parts = decoder.prepared(candidates, [(np.arange(3), MOTION), (np.arange(3), IMAGE)]).parts
    assert parts[0].tobytes() == frames_for(whole, MOTION).tobytes()
    assert parts[1].tobytes() == frames_for(whole, IMAGE).tobytes()


def test_a_clip_shorter_than_the_candidates_gives_all_its_frames(decoder, clips, tmp_path):
    candidates = decoder.candidates(clips.write_clip(tmp_path / "five.mp4", frames=5))
    assert candidates.pixels.shape == (5, 3, 24, 24)
    assert decoder.keyframes(candidates, np.array([0, 0, 1, 1, 2, 3, 4, 4])).rgb.shape == (8, 64, 96, 3)


def test_one_frame_of_16_by_16_pixels_is_a_clip(decoder, clips, tmp_path):
    candidates = decoder.candidates(clips.write_clip(tmp_path / "one.avi", frames=1, width=16, height=16, scenes=1))
    assert candidates.t_s.tolist() == [0.0]
    assert candidates.warnings == ()


def test_the_result_does_not_depend_on_how_many_frames_fit_into_memory(decoder, clips, tmp_path):
    path = clips.write_clip(tmp_path / "long.avi", frames=120)
    chosen = np.array([0, 4, 8, 12, 16, 20, 24, 31])
    whole = decoder.candidates(path)
    keyframes = decoder.keyframes(whole, chosen)
    frame_bytes = 64 * 96 * 3 // 2
    for room in (0, 40 * frame_bytes, 10 * frame_bytes):  # nothing kept, the likely candidates, some of them
        with VideoDecoder(RULE, DecodeLimits(held_bytes=room)) as tight:
            again = tight.candidates(path)
            assert again.pixels.tobytes() == whole.pixels.tobytes()
            assert tight.keyframes(again, chosen).rgb.tobytes() == keyframes.rgb.tobytes()


def test_a_rotated_clip_is_turned_upright(decoder, clips, tmp_path):
    rgb = np.zeros((10, 48, 96, 3), np.uint8)
    rgb[:, :, :48] = 200  # bright left half
    path = clips.write_clip(tmp_path / "phone.mp4", rgb)
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    one = 1 << 16
    matrix = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)  # turn by 90 degrees clockwise
    data[header + 40 : header + 76] = matrix
    path.write_bytes(data)
    upright = decoder.keyframes(decoder.candidates(path), np.zeros(8, int)).rgb[0]
    assert upright.shape == (96, 48, 3)
    assert upright[:40].mean() > 150 > 50 > upright[56:].mean()  # left has become top
    rows = np.arange(2)
    whole, prepared = decoder.prepared(decoder.candidates(path), [(rows, None), (rows, MOTION)]).parts
    assert prepared.tobytes() == frames_for(whole, MOTION).tobytes()


def test_a_clip_with_an_odd_name_is_read(decoder, clips, tmp_path):
    plain = clips.write_clip(tmp_path / "plain.avi")
    for name in ("(HQ) 300+ Yards!!!.avi", "%03d.avi", "http:x.avi", "new\nline.avi", "concat:a|b.avi", "-i.avi"):
        assert decoder.candidates(shutil.copy(plain, tmp_path / name)).frames == 40
    raw = os.fsencode(tmp_path) + b"/not-utf8-\xff.avi"
    shutil.copy(plain, raw)
    assert decoder.candidates(Path(os.fsdecode(raw))).frames == 40


def test_metadata_that_is_not_utf8_is_ignored(decoder, clips, tmp_path):
    path = clips.write_clip(tmp_path / "title.avi")
    data = path.read_bytes()
    info = b"LIST" + struct.pack("<I", 16) + b"INFOINAM" + struct.pack("<I", 4) + b"\xff\xfe\xe9\x00"
    end = data.index(b"LIST") + 8 + struct.unpack("<I", data[data.index(b"LIST") + 4 :][:4])[0]
    path.write_bytes(data[:4] + struct.pack("<I", len(data) + len(info) - 8) + data[8:end] + info + data[end:])
    import av

    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert decoder.candidates(path).frames == 40


# --- what is refused, and why ---


def test_every_useless_file_is_refused_by_a_code_of_its_own(decoder, clips, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Go: this is a text, not a video. " * 50)
    whole = clips.write_clip(tmp_path / "whole.mp4", codec="libx264").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    clips.write_sound(tmp_path / "sound.mp4")
    assert refused(decoder, tmp_path / "empty.mp4") == "video_empty"
    assert refused(decoder, tmp_path / "text.mp4") == "video_not_video"
    assert refused(decoder, tmp_path / "half.mp4") == "video_damaged"
    assert refused(decoder, tmp_path / "pipe.mp4") == "video_not_a_file"  # and at once
    assert refused(decoder, tmp_path / "folder.mp4") == "video_not_a_file"
    assert refused(decoder, Path("/dev/zero")) == "video_not_a_file"
    assert refused(decoder, tmp_path / "absent.mp4") == "video_unreadable"
    assert refused(decoder, tmp_path / "sound.mp4") == "video_no_stream"
    assert decoder.candidates(tmp_path / "whole.mp4").frames == 40


def test_a_cut_off_clip_is_used_with_a_warning(decoder, clips, tmp_path):
    path = clips.write_clip(tmp_path / "cut.avi", frames=60, rate=30, noise=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    candidates = decoder.candidates(path)
    assert 0 < candidates.frames < 50
    assert any(f"only {candidates.frames} of 60" in warning for warning in candidates.warnings)


def test_a_damaged_clip_is_used_with_a_warning(decoder, clips, tmp_path):
    path = clips.write_clip(tmp_path / "rot.avi", frames=60, noise=60)
    data = bytearray(path.read_bytes())
    movie = data.index(b"movi")
    for position in np.random.default_rng(0).integers(movie + 4000, len(data) - 3000, 40):
        data[position] ^= 0xFF
    path.write_bytes(data)
    first = decoder.candidates(path)
    assert any("damaged" in warning for warning in first.warnings)
    assert all(decoder.candidates(path).pixels.tobytes() == first.pixels.tobytes() for _ in range(3))


def test_a_text_file_cannot_make_the_decoder_open_another_file(decoder, clips, tmp_path):
    import av

    secret = clips.write_clip(tmp_path / "secret" / "other.avi")
    attack = tmp_path / "harmless.mp4"
    attack.write_text(f"ffconcat version 1.0\nfile {secret.relative_to(tmp_path)}\n")
    with av.open(str(attack)) as file:  # without our defence it works
        assert sum(1 for _ in file.decode(video=0)) == 40
    assert refused(decoder, attack) == "video_not_video"
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n")
    assert refused(decoder, playlist) == "video_not_video"


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_a_small_file_of_huge_frames_is_refused_before_any_is_decoded(clips, tmp_path, codec):
    path = clips.write_clip(tmp_path / "bomb.mkv", np.zeros((2, 480, 640, 3), np.uint8), codec=codec)
    with VideoDecoder(RULE, DecodeLimits(largest_frame=640 * 480)) as decoder:
        assert decoder.candidates(path).frames == 2
    with VideoDecoder(RULE, DecodeLimits(largest_frame=640 * 480 - 1)) as decoder:
        with pytest.raises(DataError, match="frames of 640x480, at most 307199 pixels") as caught:
            decoder.candidates(path)
        assert caught.value.code == "video_too_large"


def test_frames_of_8k_are_refused_and_of_4k_are_not(clips, tmp_path):
    limit = DecodeLimits().largest_frame
    assert 3840 * 2160 <= limit < 8192 * 8192
    path = clips.write_clip(tmp_path / "bomb.mp4", np.zeros((1, 4096, 4096, 3), np.uint8), codec="libx264")
    assert path.stat().st_size < 20_000
    with VideoDecoder(RULE) as decoder:
        assert refused(decoder, path) == "video_too_large"


# --- the process ---


def test_the_decoder_lives_under_limits(decoder, clips, tmp_path):
    decoder.candidates(clips.write_clip(tmp_path / "a.avi"))
    rows = Path(f"/proc/{decoder.pid}/limits").read_text().splitlines()
    soft = {row[:26].strip(): row[26:].split()[0] for row in rows[1:]}
    assert soft["Max address space"] == str(3 << 30)
    assert soft["Max file size"] == "0"
    assert soft["Max core file size"] == "0"
    assert soft["Max open files"] == "32"
    assert soft["Max cpu time"].isdigit()


def test_the_decoder_has_no_open_file_but_the_clip(decoder, clips, tmp_path):
    with (tmp_path / "ours").open("wb"):
        path = clips.write_clip(tmp_path / "a.avi")
        decoder.candidates(path)
        folder = Path(f"/proc/{decoder.pid}/fd")
        held = {os.readlink(entry) for entry in folder.iterdir()}
    assert held - {"/dev/null"} == {str(path), next(name for name in held if name.startswith("socket:"))}


def test_a_killed_decoder_fails_one_clip_and_restarts(clips, tmp_path):
    path = clips.write_clip(tmp_path / "a.avi")
    with VideoDecoder(RULE) as decoder:
        candidates = decoder.candidates(path)
        os.kill(decoder.pid, signal.SIGKILL)
        with pytest.raises(DataError) as caught:
            decoder.keyframes(candidates, ALL[:8])
        assert caught.value.code == "decoder_killed"
        assert decoder.candidates(path).frames == 40


def test_a_crashed_decoder_differs_from_a_killed_one(clips, tmp_path):
    path = clips.write_clip(tmp_path / "a.avi")
    with VideoDecoder(RULE) as decoder:
        candidates = decoder.candidates(path)
        os.kill(decoder.pid, signal.SIGSEGV)
        with pytest.raises(DataError, match="crashed on it \\(signal SIGSEGV\\)") as caught:
            decoder.keyframes(candidates, ALL[:8])
        assert caught.value.code == "decoder_crashed"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('libav\\x1b is gone')", "ImportError: libav? is gone"),
        ("import os; os._exit(3)", "status 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed, as the system does when memory is short"),
    ],
)
def test_a_decoder_that_never_starts_is_an_installation_error(clips, tmp_path, monkeypatch, code, words):
    path = clips.write_clip(tmp_path / "a.avi")
    (tmp_path / "av.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with VideoDecoder(RULE) as decoder:
        decoder.start()
        for _ in range(2):
            with pytest.raises(SettingsError) as caught:
                decoder.candidates(path)
            assert (caught.value.code, caught.value.fix) == ("decoder_broken", "flamest-agent doctor")
            assert words in caught.value.message


def test_a_package_missing_in_the_decoder_is_no_clips_fault(clips, tmp_path, monkeypatch):
    path = clips.write_clip(tmp_path / "a.avi")
    with VideoDecoder(RULE) as decoder:
        decoder.start()
        refusal = (DecodeRefused(DECODER_BROKEN, "pillow is not installed"), bytearray())
        monkeypatch.setattr("flamest.base.child_process.ChildProcess.receive", lambda *_, **options: refusal)
        with pytest.raises(SettingsError, match="pillow is not installed"):
            decoder.candidates(path)


def held_mb(decoder):
    lines = Path(f"/proc/{decoder.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def test_an_idle_decoder_drops_frames_and_decodes_them_again(clips, tmp_path):
    small = clips.write_clip(tmp_path / "small.avi")
    large = clips.write_clip(tmp_path / "large.avi", frames=40, width=1280, height=720)  # 55 MB of frames
    with VideoDecoder(RULE) as decoder:
        decoder.keyframes(decoder.candidates(small), ALL[:8])
        before = held_mb(decoder)
        candidates = decoder.candidates(large)
        assert held_mb(decoder) > before + 50
        first = decoder.keyframes(candidates, ALL[:8]).rgb
        waited = time.monotonic()
        while held_mb(decoder) > before + 15 and time.monotonic() < waited + 10:  # it drops them after its answer
            time.sleep(0.02)
        assert held_mb(decoder) < before + 15
        assert decoder.keyframes(candidates, ALL[:8]).rgb.tobytes() == first.tobytes()


def test_a_decoder_that_hangs_is_killed_and_restarts(clips, tmp_path):
    path = clips.write_clip(tmp_path / "a.avi")
    with VideoDecoder(RULE, DecodeLimits(timeout_s=3.0)) as decoder:
        decoder.candidates(path)
        stuck = decoder.pid
        os.kill(stuck, signal.SIGSTOP)
        start = time.monotonic()
        assert refused(decoder, path) == "video_timeout"
        assert 3 <= time.monotonic() - start < 8
        assert not Path(f"/proc/{stuck}").exists()
        assert decoder.candidates(path).frames == 40


def test_a_clip_may_take_only_so_much_processor_time(clips, tmp_path):
    path = clips.write_clip(tmp_path / "a.avi")
    with VideoDecoder(RULE, DecodeLimits(timeout_s=30)) as decoder:
        candidates = decoder.candidates(path)
        soft, _ = resource.prlimit(decoder.pid, resource.RLIMIT_CPU)
        assert 30 <= soft <= 40  # 30 s on top of what starting took
        os.kill(decoder.pid, signal.SIGXCPU)  # what the kernel sends at the limit
        with pytest.raises(DataError) as caught:
            decoder.keyframes(candidates, ALL[:8])
        assert caught.value.code == "video_timeout"
        assert decoder.candidates(path).frames == 40


def test_signals_for_the_agent_do_not_stop_the_decoder(decoder, clips, tmp_path):
    candidates = decoder.candidates(clips.write_clip(tmp_path / "a.avi"))
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(decoder.pid, number)
    assert decoder.keyframes(candidates, ALL[:8]).rgb.shape[0] == 8


def test_the_decoder_ends_with_its_parent(clips, tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from msgspec import UNSET
from flamest.runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from flamest.runtime.video.decoder import VideoDecoder

small = {SMALL!r}
decoder = VideoDecoder(KeyframeRule(8, 32, small, 1, ""))
decoder.candidates(Path(sys.argv[1]))
print(decoder.pid, flush=True)
time.sleep(60)
"""
    path = clips.write_clip(tmp_path / "a.avi")
    parent = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    child = Path(f"/proc/{int(parent.stdout.readline())}")
    assert child.exists()
    parent.kill()
    parent.communicate()
    waited = time.monotonic()
    while running(child) and time.monotonic() < waited + 10:
        time.sleep(0.02)
    assert not running(child)


def running(process):
    """Neither gone nor a zombie that a container's first process has not collected."""
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except OSError:
        return False


def test_closing_a_decoder_twice_does_no_harm(clips, tmp_path):
    decoder = VideoDecoder(RULE)
    decoder.candidates(clips.write_clip(tmp_path / "a.avi"))
    decoder.close()
    decoder.close()
    assert decoder.pid is None


@pytest.mark.parametrize(
    ("times", "payload"), [((0.0,), 7), ((0.0,), 3 * 24 * 24 * 4 - 1), ((), 0), ((0.0,) * 2, 3 * 24 * 24 * 4)]
)
def test_a_decoder_with_invalid_answers_is_ended(clips, tmp_path, monkeypatch, times, payload):
    path = clips.write_clip(tmp_path / "a.avi")
    with VideoDecoder(RULE) as decoder:
        with monkeypatch.context() as patch:
            lie = (Opened(times, 1, (), 1), bytearray(payload))
            patch.setattr("flamest.base.child_process.ChildProcess.receive", lambda *_, **options: lie)
            assert refused(decoder, path) == "decoder_crashed"
        assert decoder.candidates(path).frames == 40


ONE = 3 * 24 * 24 * 4  # bytes of a candidate
LIES = {
    "negative times": (Opened((-1.0,), 1, (), 1), ONE),
    "times that decrease": (Opened((1.0, 0.5), 2, (), 1), 2 * ONE),
    "times that are none": (Opened((0.0, math.nan), 2, (), 1), 2 * ONE),
    "times without an end": (Opened((0.0, math.inf), 2, (), 1), 2 * ONE),
    "fewer frames than times": (Opened((0.0, 1.0), 1, (), 1), 2 * ONE),
    "frames beyond counting": (Opened((0.0,), 1 << 70, (), 1), ONE),
    "negative frames decoded": (Opened((0.0,), 1, (), 1, -5), ONE),
    "negative memory": (Opened((0.0,), 1, (), -1), ONE),
    "a warning that drives a terminal": (Opened((0.0,), 1, ("\x1b[2J",), 1), ONE),
    "a warning that turns letters": (Opened((0.0,), 1, ("a\u202eb",), 1), ONE),
    "a warning without an end": (Opened((0.0,), 1, ("a" * 100_000,), 1), ONE),
    "warnings without an end": (Opened((0.0,), 1, ("a",) * 1000, 1), ONE),
    "another answer": (FramesRead(1, 1, 1.0, 1), ONE),
    "a refusal of another code": (DecodeRefused("not_a_file", "is odd"), 0),
    "a refusal with a code of two lines": (DecodeRefused("video_damaged\nok", "is odd"), 0),
    "a refusal that drives a terminal": (DecodeRefused("video_damaged", "is\x1b]0;owned\x07"), 0),
    "a refusal of two lines": (DecodeRefused("video_damaged", "is odd\nok: all well"), 0),
    "a refusal with a fix of two lines": (DecodeRefused("video_damaged", "is odd", "rm\n"), 0),
    "a refusal without an end": (DecodeRefused("video_damaged", "a" * 100_000), 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_cannot_be_is_the_decoders_crash(clips, tmp_path, monkeypatch, lie):
    path = clips.write_clip(tmp_path / "a.avi")
    answer, payload = LIES[lie]
    with VideoDecoder(RULE) as decoder:
        with monkeypatch.context() as patch:
            patch.setattr(ChildProcess, "receive", lambda *_, **options: (answer, bytearray(payload)))
            with pytest.raises(DataError) as caught:
                decoder.candidates(path)
        assert caught.value.code == "decoder_crashed"
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < len(str(path)) + 200
        assert decoder.candidates(path).frames == 40


@pytest.mark.parametrize(
    ("t_us", "keys", "end_us"),
    [
        ((-1, 0), (1, 0), 10),
        ((0, 10, 5), (1, 0, 0), 20),
        ((0, 10), (1, 2), 20),
        ((0, 10), (1, 0), 9),
        ((0, 10), (1, 0), -1),
        ((0, 10), (1, 0), 1 << 70),
    ],
)
def test_frame_times_that_cannot_be_are_the_decoders_crash(clips, tmp_path, monkeypatch, t_us, keys, end_us):
    path = clips.write_clip(tmp_path / "a.avi")
    payload = bytearray(np.array(t_us, np.int64).tobytes() + bytes(keys))
    with VideoDecoder(None) as decoder:
        with monkeypatch.context() as patch:
            lie = FramesListed(len(t_us), True, end_us, 1), payload
            patch.setattr(ChildProcess, "receive", lambda *_, **options: lie)
            with pytest.raises(DataError) as caught:
                decoder.frame_times(path)
        assert caught.value.code == "decoder_crashed"
        assert len(decoder.frame_times(path).t_us) == 40


def test_a_decoder_that_has_worked_cannot_end_the_extraction(clips, tmp_path, monkeypatch):
    path = clips.write_clip(tmp_path / "a.avi")
    with VideoDecoder(RULE) as decoder:
        decoder.prepared(decoder.candidates(path), [(np.array([0]), MOTION)])
        refusal = (DecodeRefused(DECODER_BROKEN, "pillow is not installed"), bytearray())
        monkeypatch.setattr(ChildProcess, "receive", lambda *_, **options: refusal)
        assert refused(decoder, path) == "decoder_crashed"


def test_words_of_an_unknown_answer_are_bounded_and_printable(clips, tmp_path, monkeypatch):
    path = clips.write_clip(tmp_path / "a.avi")

    def unknown(self, kind, **options):
        raise ChildProtocolError("an invalid answer: Invalid value " + "\x1b[2J" * 10_000)

    with VideoDecoder(RULE) as decoder:
        decoder.candidates(path)
        monkeypatch.setattr(ChildProcess, "receive", unknown)
        with pytest.raises(DataError) as caught:
            decoder.candidates(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < len(str(path)) + 500


@pytest.mark.parametrize(
    ("height", "width", "payload"),
    [
        (64, 96, 2 * 17 * 17 * 3 - 1),
        (64, 96, 2 * 17 * 17 * 3 + 1),
        (64, 96, 2 * 17 * 17 * 3),  # the second part is missing
        (64, 96, 2 * 17 * 17 * 3 + 64 * 96 * 3 - 1),
        (32, 96, 2 * 17 * 17 * 3 + 64 * 96 * 3),
        (0, 96, 2 * 17 * 17 * 3),
        (-64, -96, 2 * 17 * 17 * 3 + 64 * 96 * 3),
    ],
)
def test_prepared_frames_of_a_wrong_size_are_refused(clips, tmp_path, monkeypatch, height, width, payload):
    path = clips.write_clip(tmp_path / "a.avi")
    with VideoDecoder(RULE) as decoder:
        candidates = decoder.candidates(path)
        with monkeypatch.context() as patch:
            lie = (FramesRead(height, width, 1.0, 1), bytearray(payload))
            patch.setattr("flamest.base.child_process.ChildProcess.receive", lambda *_, **options: lie)
            with pytest.raises(DataError) as caught:
                decoder.prepared(candidates, [(np.array([1, 2]), MOTION), (np.array([1]), None)])
        assert caught.value.code == "decoder_crashed"
        assert decoder.candidates(path).frames == 40


def test_no_more_bytes_are_read_than_were_asked_for(clips, tmp_path, monkeypatch):
    """A decoder that a hostile file controls could fill the memory."""
    allowed = []
    receive = ChildProcess.receive

    def noted(self, kind, *, timeout_s=None, largest_payload=0):
        allowed.append(largest_payload)
        return receive(self, kind, timeout_s=timeout_s, largest_payload=largest_payload)

    with VideoDecoder(RULE) as decoder:
        candidates = decoder.candidates(clips.write_clip(tmp_path / "a.avi"))
        monkeypatch.setattr(ChildProcess, "receive", noted)
        decoder.prepared(candidates, [(np.array([1, 2]), MOTION), (np.array([1]), IMAGE), (np.array([4]), FLOATS)])
    assert allowed == [2 * 17 * 17 * 3 + 30 * 30 * 3 + 24 * 24 * 3 * 4]


def test_keyframes_of_a_clip_that_is_no_longer_open_are_refused(decoder, clips, tmp_path):
    old = decoder.candidates(clips.write_clip(tmp_path / "a.avi"))
    decoder.candidates(clips.write_clip(tmp_path / "b.avi", seed=1))
    with pytest.raises(InvariantError, match="after another clip was opened"):
        decoder.keyframes(old, ALL[:8])
