"""Segments of a long recording: same embeddings as files cut from it? How many frames are decoded, in which time?

    python -m bench.segments [--minutes 30] [--segments 40]

A recording is made here, and segments of it, every second one with ends at key frames. Their embeddings (the packaged
mini-world bundle) are compared with those of files cut by stream copy at key frames, and elsewhere with those of a
lossless encoding of the same frames, given the same seeds. Processor seconds are of reading alone (decoding, keyframes,
resizing, without the networks), beside those of cutting first, and of decoding the whole recording once. Other
containers and codecs follow at a sixth of the length.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
from flamest.base.files import sha256_file
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.bundle.packaged import miniworld_bundle
from flamest.runtime.clip_records import Clip, FrameTimes, Segment, clip_identity
from flamest.runtime.extractor import open_extractor
from flamest.runtime.similarity import row_cosines
from flamest.runtime.video import open_video
from flamest.runtime.video.clip_reader import open_decoder
from flamest.runtime.video.decoded_segment import DecodedSegment
from flamest.runtime.video.decoder import VideoDecoder
from flamest.runtime.video.decoder_messages import OpenClip
from flamest.runtime.video.preprocessing import FrameInput
from flamest.runtime.video.video_file import VideoFile

from .record import store_result

HEIGHT, WIDTH, RATE = 240, 320, 25
LARGEST_FRAME, HELD = 1 << 22, 256 << 20
KINDS: dict[str, tuple[str, dict[str, str]]] = {  # file name: encoder and its options; g: frames from key to key
    "h264_b_frames.mp4": ("libx264", {"preset": "ultrafast", "g": "50", "bf": "2"}),
    "h264_long_groups.mp4": ("libx264", {"preset": "ultrafast", "g": "500", "bf": "2"}),
    "h264_variable_rate.mkv": ("libx264", {"preset": "ultrafast", "g": "50", "bf": "2"}),
    "h264_transport_stream.ts": ("libx264", {"preset": "ultrafast", "g": "50", "bf": "2"}),
    "mpeg4.avi": ("mpeg4", {"g": "50"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "50"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--segments", type=int, default=40)
    arguments = parser.parse_args()
    figures = measure(arguments.minutes, arguments.segments)
    print(json.dumps(figures, indent=2))
    print(f"stored in {store_result('segments', figures)}")


def measure(minutes: float, segments: int) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for number, kind in enumerate(KINDS):
            part = 1 if number == 0 else 6
            rows.append(measure_kind(Path(name), kind, minutes / part, max(2, segments // part)))
            print(json.dumps(rows[-1]), flush=True)
    return {"bundle": "miniworld", "frame": f"{WIDTH}x{HEIGHT}", "load": os.getloadavg()[0], "recordings": rows}


def measure_kind(folder: Path, kind: str, minutes: float, count: int) -> dict[str, Any]:
    """Figures of one recording, made in ``folder``, with ``count`` segments."""
    path = write_recording(folder / kind, *KINDS[kind], frames=round(minutes * 60 * RATE), variable="variable" in kind)
    sha256 = sha256_file(path)
    with VideoDecoder(None) as decoder:
        times = decoder.frame_times(path)
    at_keys, elsewhere = _segments(times, count)
    chosen = sorted([*at_keys, *elsewhere])
    clips = [Clip(path, clip_identity(sha256, each), segment=each, file_sha256=sha256) for each in chosen]
    began = _cpu_s()
    names = {each: folder / f"cut{number}" for number, each in enumerate(chosen)}
    cut = {each: cut_at_keys(path, each, times, names[each].with_suffix(path.suffix)) for each in at_keys}
    cut_s = _cpu_s() - began
    began = _cpu_s()
    encoded = encode_again(path, {each: names[each].with_suffix(".mkv") for each in elsewhere})
    encoded_s = _cpu_s() - began
    files = [Clip(({**cut, **encoded})[clip.segment], clip.sha256) for clip in clips if clip.segment]
    group = _longest_group(times)
    read = _read(clips)
    own = [frames for frames, _ in read.frames]
    beyond = [decoded - frames for frames, decoded in read.frames]
    with mock.patch.object(open_video, "MOST_FAILURES", 0):
        whole_s, whole_decoded, _ = _in_this_process(path, chosen)
    here_s, _, opens = _in_this_process(path, chosen)
    indexed_s, _, _ = _in_this_process(path, [])
    row = {
        "recording": kind,
        "minutes": minutes,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "segments": len(chosen),
        "at_key_frames": len(at_keys),
        "group_of_pictures": group,
        "own_frames": sum(own),
        "decoded_beyond_own": {"sum": sum(beyond), "most": max(beyond)},
        "within_own_plus_one_group": sum(each <= group for each in beyond),
        "container_opens": opens,
        "processor_seconds": {
            "index": round(indexed_s, 2),
            "read_segments": round(read.seconds, 2),
            "cut_by_stream_copy": round(cut_s, 2),
            "encode_the_others": round(encoded_s, 2),
            "read_cut_files": round(_read(files).seconds, 2),
            "decoding_segments": round(here_s, 2),
            "decoding_all_once": round(whole_s, 2),
        },
        "frames_of_decoding_all_once": whole_decoded,
        **_compared(clips, files, set(at_keys)),
    }
    for each in (path, *cut.values(), *encoded.values()):
        each.unlink()
    return row


def _compared(clips: Sequence[Clip], files: Sequence[Clip], at_keys: set[Segment]) -> dict[str, Any]:
    """Embeddings of the segments and of the files that hold the same frames, with the same seeds."""
    with open_extractor(miniworld_bundle()) as extractor:
        found = list(extractor.extract_all([*clips, *files]))
    equal, cosines = {True: 0, False: 0}, {True: [1.0], False: [1.0]}
    for one, other in zip(found[: len(clips)], found[len(clips) :], strict=True):
        if one.features is None or other.features is None:
            raise SystemExit(f"not extracted: {one.error or other.error}")
        kind = one.clip.segment in at_keys
        first, second = (np.concatenate([each.vlm, each.cnn]) for each in (one.features, other.features))
        equal[kind] += first.tobytes() == second.tobytes() and one.features.caption == other.features.caption
        cosines[kind].append(float(row_cosines(first[None], second[None])[0]))
    return {
        "bit_equal_to_stream_copy": f"{equal[True]} of {len(at_keys)}",
        "bit_equal_to_lossless_encoding": f"{equal[False]} of {len(clips) - len(at_keys)}",
        "least_cosine": {"stream_copy": min(cosines[True]), "lossless_encoding": min(cosines[False])},
    }


def _cpu_s() -> float:
    """Processor seconds of this process and its children that have ended: the machine is shared."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@dataclasses.dataclass
class _Read:
    seconds: float  # of processors
    frames: list[tuple[int, int]]  # of each clip: its own, and decoded


def _read(clips: Sequence[Clip]) -> _Read:
    """Candidates and eight frames of each clip, by one decoder process."""
    frames, began = [], _cpu_s()
    with open_decoder(open_bundle(miniworld_bundle()).manifest) as decoder:
        for clip in clips:
            candidates = decoder.candidates(clip.path, clip.segment)
            decoder.keyframes(candidates, np.linspace(0, len(candidates.pixels) - 1, 8).astype(int))
            frames.append((candidates.frames, candidates.decoded))
    return _Read(_cpu_s() - began, frames)


def _in_this_process(path: Path, segments: Sequence[Segment]) -> tuple[float, int, int]:
    """Decode the segments without a child process: processor seconds, frames, openings of the file."""
    rule = open_bundle(miniworld_bundle()).manifest.keyframes
    request = OpenClip(rule.candidates, FrameInput(rule.preprocessing, whole_bytes=False), LARGEST_FRAME, HELD, 600)
    began, fd = _cpu_s(), os.open(path, os.O_RDONLY)
    with mock.patch.object(VideoFile, "open", autospec=True, side_effect=VideoFile.open) as opened:
        video = open_video.OpenVideo(fd, LARGEST_FRAME)
        decoded = sum(DecodedSegment(video, each, request).decoded for each in segments)
        video.close()
    os.close(fd)
    return _cpu_s() - began, decoded, opened.call_count


def _segments(times: FrameTimes, count: int) -> tuple[list[Segment], list[Segment]]:
    """As many segments with ends at key frames, some 8 s long, as with ends anywhere, spread over the recording."""
    random = np.random.default_rng(0)
    keys = [int(times.t_us[number]) for number in times.key_frames]
    ends = [*keys[1:], times.end_us]
    places = np.linspace(0, len(keys) - 1, count, endpoint=False).astype(int)
    at_keys, elsewhere = [], []
    for number, place in enumerate(places):
        start = keys[place]
        if number % 2:
            shift = int(random.integers(100_000, 1_900_000))
            elsewhere.append(Segment(start + shift, start + shift + int(random.integers(3_000_000, 9_000_000))))
        else:
            at_keys.append(Segment(start, next((end for end in ends[place:] if end >= start + 8_000_000), ends[-1])))
    return list(dict.fromkeys(at_keys)), elsewhere


def _longest_group(times: FrameTimes) -> int:
    return int(np.diff([*times.key_frames, len(times.t_us)]).max())


def write_recording(path: Path, codec: str, options: dict[str, str], *, frames: int, variable: bool) -> Path:
    """Squares that move over backgrounds that change, with noise; key frames every ``g`` frames."""
    options, random = dict(options), np.random.default_rng(0)
    noise = random.integers(0, 24, (16, HEIGHT, WIDTH, 3), dtype=np.uint8)
    ticks = np.cumsum(random.integers(20, 60, frames)) if variable else np.arange(frames) * 1000 // RATE
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        context = stream.codec_context
        context.thread_count = 2
        context.gop_size, context.max_b_frames = int(options.pop("g")), int(options.pop("bf", "0"))
        context.bit_rate, context.options = 400_000, options
        context.time_base = Fraction(1, 1000) if variable else Fraction(1, RATE)
        for number in range(frames):
            scene, speed = number // (RATE * 20), 1 + number // (RATE * 7) % 5
            rgb = noise[number % 16] + np.array([(scene * 53) % 150, (scene * 31) % 150, (scene * 17) % 150], np.uint8)
            left, top = number * speed % (WIDTH - 60), scene * 37 % (HEIGHT - 60)
            rgb[top : top + 60, left : left + 60] = (250, 240, 60) if scene % 2 else (40, 60, 230)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = int(ticks[number]) if variable else number
            frame.time_base = context.time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def cut_at_keys(path: Path, segment: Segment, times: FrameTimes, target: Path) -> Path:
    """The packets from the key frame at the segment's start until before the one at its end, in a file of their own."""
    first = int(np.searchsorted(times.t_us, segment.start_us))
    until = int(np.searchsorted(times.t_us, segment.end_us))
    keys = times.key_frames.tolist()
    with av.open(str(path)) as source, av.open(str(target), "w") as file:
        stream = source.streams.video[0]
        copy = file.add_stream_from_template(stream)
        number = -1  # of the group of pictures
        for packet in source.demux(stream):
            if packet.size == 0:
                break
            number += packet.is_keyframe
            if keys[number] >= until:
                break
            if keys[number] >= first:
                packet.stream = copy
                file.mux(packet)
    return target


def encode_again(path: Path, targets: dict[Segment, Path]) -> dict[Segment, Path]:
    """Each segment's frames, found by decoding the recording from its beginning, encoded without loss."""
    with av.open(str(path)) as source, contextlib.ExitStack() as opened:
        files = {}
        for segment, target in targets.items():
            file = opened.enter_context(av.open(str(target), "w"))
            stream = file.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.options = {"qp": "0", "preset": "ultrafast"}
            stream.codec_context.time_base = Fraction(1, 1000)
            files[segment] = file, stream
        first = None
        for frame in source.decode(video=0):
            first = frame.pts if first is None else first
            t_us = int((frame.pts - first) * frame.time_base * 1_000_000 + Fraction(1, 2))
            for segment, (file, stream) in files.items():
                if segment.start_us <= t_us < segment.end_us:
                    frame.pts, frame.time_base = (t_us - segment.start_us) // 1000, Fraction(1, 1000)
                    frame.pict_type = av.video.frame.PictureType.NONE
                    file.mux(stream.encode(frame))
        for file, stream in files.values():
            file.mux(stream.encode())
    return targets


if __name__ == "__main__":
    main()
