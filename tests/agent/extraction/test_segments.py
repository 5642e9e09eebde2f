"""Segments of long files through an extraction: each a clip, each file hashed once, and labels follow labels.csv."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
from flamest.agent.extraction import contents
from flamest.agent.extraction.extract import extract_folder
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.extraction.store import FeatureStore
from flamest.base.files import sha256_file
from flamest.runtime.clip_records import Segment, clip_identity
from flamest.runtime.video.clip_reader import ClipReader
from flamest.runtime.video.decoder import VideoDecoder

CUTS = ((0, 2), (2, 3.5), (4.5, 6), (6, 8))
HEADER = "path,label,group,person,camera,start_s,end_s\n"


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """A video of 8 s, and a short one."""
    folder = tmp_path_factory.mktemp("made")
    clips.write_clip(folder / "ward" / "long.mp4", frames=200, scenes=8, noise=10)
    clips.write_clip(folder / "ward" / "short.mp4", frames=12, seed=2, noise=10)
    return folder


@pytest.fixture
def videos(made, tmp_path):
    return shutil.copytree(made, tmp_path / "videos")


@pytest.fixture
def request_(toy_bundle, videos, tmp_path):
    return ExtractRequest(toy_bundle, videos, tmp_path / "features.sqlite", threads=1)


def listed(videos, *cuts, file="ward/long.mp4", label="wave", more=""):
    rows = "".join(f"{file},{label},g,p1,ceiling,{start},{end}\n" for start, end in cuts)
    (videos / "labels.csv").write_text(HEADER + rows + more)


def read(request):
    with FeatureStore.open(request.store, read_only=True) as store:
        return store.read()


def labels_of(request):
    stored = read(request)
    return dict(zip(stored.paths, stored.labels, strict=True))


def names(*cuts, file="ward/long.mp4"):
    return {f"{file}#{Segment.of_seconds(*cut)}" for cut in cuts}


def test_every_segment_is_stored_as_a_clip_of_its_own(request_, monkeypatch):
    hashed, content_hash = [], contents.content_hash
    monkeypatch.setattr(
        contents, "content_hash", lambda path, *more: hashed.append(path.name) or content_hash(path, *more)
    )
    listed(request_.videos, *CUTS, more="ward/short.mp4,run,,,,,\nward/long.mp4,day,,,,,\n")
    done = []
    report = extract_folder(request_, on_clip=lambda: done.append(1))
    assert (report.clips, report.extracted, report.failed, len(done)) == (6, 6, (), 6)
    assert sorted(hashed) == ["long.mp4", "short.mp4"]
    stored = read(request_)
    assert set(stored.paths) == {*names(*CUTS), "ward/short.mp4", "ward/long.mp4"}
    assert set(stored.files) == {"ward/short.mp4", "ward/long.mp4"}
    file = sha256_file(request_.videos / "ward" / "long.mp4")
    for sha256, path, segment, label, person in zip(
        stored.clips, stored.paths, stored.segments, stored.labels, stored.persons, strict=True
    ):
        if path == "ward/long.mp4":
            assert (sha256, label, person) == (file, "day", "")
        elif segment is not None:
            assert (sha256, label, person) == (clip_identity(file, segment), "wave", "p1")
    assert len({row.tobytes() for row in stored.x}) == 6
    again = extract_folder(request_)
    assert (again.extracted, again.skipped) == (0, 6)


def test_segments_of_a_file_are_read_in_a_row_by_time(request_, clips, monkeypatch):
    clips.write_clip(request_.videos / "ward" / "long.mp4#t=3.mp4", frames=12, seed=3)
    rows = "ward/long.mp4#t=3.mp4,run,,,,,\nward/short.mp4,run,,,,,\n"
    listed(request_.videos, (6, 8), (2, 3.5), (10, 12), (0, 2), more=rows)
    tried, read_clip = [], ClipReader.read
    monkeypatch.setattr(ClipReader, "read", lambda self, clip: tried.append(clip) or read_clip(self, clip))
    extract_folder(request_)
    starts = [clip.segment.start_s for clip in tried if clip.segment]
    assert starts == [0, 2, 6, 10]
    places = [index for index, clip in enumerate(tried) if clip.segment]
    assert places == list(range(places[0], places[0] + 4))


def test_two_workers_store_the_same_segments_as_one_process(request_, tmp_path):
    listed(request_.videos, *CUTS)
    extract_folder(request_)
    two = replace(request_, store=tmp_path / "two.sqlite", threads=2, device="cpu,cpu")
    assert extract_folder(two).extracted == 4
    one, other = read(request_), read(two)
    assert (one.clips, one.segments, one.x.tobytes()) == (other.clips, other.segments, other.x.tobytes())


def test_the_same_segment_under_two_paths_is_one_clip(request_):
    shutil.copy(request_.videos / "ward" / "long.mp4", request_.videos / "copy.mp4")
    copies = "copy.mp4,wave,,,,0,2\ncopy.mp4,run,,,,2,3.5\ncopy.mp4,wave,,,,1,2\n"
    listed(request_.videos, *CUTS, more=copies)
    report = extract_folder(request_)
    assert (report.extracted, report.skipped) == (5, 1)
    (failed,) = report.failed  # the first of the two by name has the label
    assert failed.clip == "ward/long.mp4#t=2,3.5"
    assert failed.reason.startswith("label_conflict: has the same content as copy.mp4#t=2,3.5, which is labelled run")
    assert report.unlisted == 0


# --- failures ---


def test_a_failure_of_one_segment_leaves_the_others(request_):
    listed(request_.videos, (0, 2), (50, 60), (6, 8))
    report = extract_folder(request_)
    assert (report.extracted, report.clips) == (2, 3)
    (failed,) = report.failed
    assert (failed.clip, failed.code, failed.clips) == ("ward/long.mp4#t=50,60", "segment_outside", 1)
    (again,) = extract_folder(request_).failed
    assert again == replace(failed, known=True)


def cuts_of(count):
    return tuple((number * 0.2, number * 0.2 + 0.2) for number in range(count))


def test_a_file_that_is_no_video_is_reported_and_tried_once(request_, monkeypatch):
    (request_.videos / "ward" / "long.mp4").write_text("not a video at all")
    listed(request_.videos, *cuts_of(40), more="ward/short.mp4,run,,,,,\n")
    tried, candidates = [], VideoDecoder.candidates
    monkeypatch.setattr(
        VideoDecoder,
        "candidates",
        lambda self, path, *more, **named: tried.append(path.name) or candidates(self, path, *more, **named),
    )
    report = extract_folder(request_)
    (failed,) = report.failed
    assert (failed.clip, failed.code, failed.clips, failed.known) == ("ward/long.mp4", "video_not_video", 40, False)
    assert failed.reason.endswith("(all 40 clips of this file)")
    assert (report.clips, report.extracted, report.failed_clips) == (41, 1, 40)
    assert tried.count("long.mp4") == 1
    tried.clear()
    listed(request_.videos, *cuts_of(42), more="ward/short.mp4,run,,,,,\n")  # two more, never tried
    (failed,) = extract_folder(request_).failed
    assert (failed.clips, failed.known, tried) == (42, True, [])
    (failed,) = extract_folder(replace(request_, retry=True)).failed
    assert (failed.clips, failed.known, tried) == (42, False, ["long.mp4"])


def test_a_file_whose_segments_crash_decoders_crashes_few(request_, monkeypatch):
    listed(request_.videos, *cuts_of(40))
    crashed, prepared = [], VideoDecoder.prepared

    def deadly(self, found, wanted):
        if len(crashed) < 1000:
            crashed.append(1)
            os.kill(self.pid, signal.SIGSEGV)
        return prepared(self, found, wanted)

    monkeypatch.setattr(VideoDecoder, "prepared", deadly)
    report = extract_folder(request_)
    (failed,) = report.failed
    assert (failed.clip, failed.code, failed.clips) == ("ward/long.mp4", "decoder_crashed", 40)
    assert len(crashed) == 6  # three segments, each in two processes
    (failed,) = extract_folder(request_).failed
    assert (failed.known, len(crashed)) == (True, 6)


def test_a_missing_and_an_unreadable_file_are_reported_once(request_):
    (request_.videos / "ward" / "short.mp4").unlink()
    limits = replace(request_.limits, largest_file=10)
    listed(request_.videos, *CUTS, more="ward/short.mp4,run,,,,0,1\nward/short.mp4,run,,,,1,2\n")
    report = extract_folder(replace(request_, limits=limits))
    assert {(failed.clip, failed.code, failed.clips) for failed in report.failed} == {
        ("ward/long.mp4", "file_too_large", 4),
        ("ward/short.mp4", "missing", 2),
    }
    assert report.nothing_usable


def test_segments_of_a_file_that_changes_wait_for_the_next_run(request_, monkeypatch):
    listed(request_.videos, *CUTS)
    read_clip, path = ClipReader.read, request_.videos / "ward" / "long.mp4"

    def growing(self, clip):
        prepared = read_clip(self, clip)
        if clip.segment.start_s == 2:
            with path.open("ab") as file:
                file.write(b"more")
        return prepared

    with monkeypatch.context() as patch:
        patch.setattr(ClipReader, "read", growing)
        report = extract_folder(request_)
    assert {failed.code for failed in report.failed} == {"video_changed"}
    assert report.extracted + report.failed_clips == 4
    assert report.failed_clips >= 1
    assert extract_folder(request_).extracted == 4  # another content, so other clips
    assert sum(label is not None for label in read(request_).labels) >= 4


# --- clips that labels.csv lists no more ---


def test_a_moved_boundary_takes_the_old_clips_label_and_gives_it_back(request_):
    listed(request_.videos, *CUTS)
    extract_folder(request_)
    moved = ((0, 2.5), *CUTS[1:])
    listed(request_.videos, *moved)
    report = extract_folder(request_)
    assert (report.extracted, report.skipped, report.unlisted) == (1, 3, 1)
    labels = labels_of(request_)
    assert {name for name, label in labels.items() if label} == names(*moved)
    assert labels["ward/long.mp4#t=0,2"] is None
    listed(request_.videos, *CUTS, label="run")
    report = extract_folder(request_)
    assert (report.extracted, report.unlisted) == (0, 1)
    assert labels_of(request_)["ward/long.mp4#t=0,2"] == "run"


def test_a_whole_file_that_becomes_segments_loses_its_label(request_):
    listed(request_.videos, more="ward/long.mp4,wave,,,,,\nward/short.mp4,run,,,,,\n")
    extract_folder(request_)
    listed(request_.videos, *CUTS, more="ward/short.mp4,run,,,,,\n")
    assert extract_folder(request_).unlisted == 1
    assert labels_of(request_)["ward/long.mp4"] is None
    (request_.videos / "labels.csv").unlink()  # its folder's name is the label again
    report = extract_folder(request_)
    assert (report.extracted, report.unlisted) == (0, 4)
    assert {name for name, label in labels_of(request_).items() if label} == {"ward/long.mp4", "ward/short.mp4"}


def test_a_file_whose_rows_are_all_removed_loses_its_labels(request_):
    listed(request_.videos, *CUTS, more="ward/short.mp4,run,,,,,\n")
    extract_folder(request_)
    listed(request_.videos, *CUTS)
    assert extract_folder(request_).unlisted == 1
    listed(request_.videos, more="ward/short.mp4,run,,,,,\n")
    report = extract_folder(request_)
    assert (report.extracted, report.unlisted) == (0, 4)
    assert {name for name, label in labels_of(request_).items() if label} == {"ward/short.mp4"}


def gone(videos):
    (videos / "ward" / "long.mp4").unlink()


def another(videos):
    with (videos / "ward" / "long.mp4").open("ab") as file:
        file.write(b"more")


def linked_out(videos):
    (videos / "ward" / "long.mp4").rename(videos.parent / "out.mp4")
    (videos / "ward" / "long.mp4").symlink_to(videos.parent / "out.mp4")


@pytest.mark.parametrize("change", [gone, another, linked_out])
def test_a_file_that_is_gone_from_the_folder_keeps_its_labels(request_, change):
    listed(request_.videos, *CUTS, more="ward/short.mp4,run,,,,,\n")
    extract_folder(request_)
    listed(request_.videos, more="ward/short.mp4,run,,,,,\n")
    change(request_.videos)
    assert extract_folder(request_).unlisted == 0
    assert None not in labels_of(request_).values()


def not_whole_bad_row(request):
    listed(request.videos, CUTS[0], more="ward/long.mp4,wave,,,,6,x\n")
    return {}


def not_whole_stopped(request):
    listed(request.videos, CUTS[0], (1, 4), (2, 4), (3, 4))
    done = []
    return {"on_clip": lambda: done.append(1), "stop": lambda: len(done) == 2}


def not_whole_unread_folder(request):
    (request.videos / "labels.csv").unlink()
    return {}


@pytest.mark.parametrize("harm", [not_whole_bad_row, not_whole_stopped, not_whole_unread_folder])
def test_a_folder_that_is_not_known_whole_takes_no_label(request_, harm, monkeypatch):
    listed(request_.videos, *CUTS)
    extract_folder(request_)
    if harm is not_whole_unread_folder:
        walk = os.walk

        def partly(folder, *, onerror, **more):
            onerror(PermissionError(13, "Permission denied", str(folder / "private")))
            return walk(folder, onerror=onerror, **more)

        monkeypatch.setattr("flamest.agent.extraction.clips.os.walk", partly)
    report = extract_folder(request_, **harm(request_))
    assert report.unlisted == 0
    assert names(*CUTS) <= {name for name, label in labels_of(request_).items() if label}


@pytest.mark.parametrize("file", ["ward/long.mp4", r"Ward\LONG.mp4"])
def test_rows_of_a_file_that_is_missing_for_now_keep_their_labels(request_, file):
    shutil.copy(request_.videos / "ward" / "long.mp4", request_.videos / "copy.mp4")
    listed(request_.videos, *CUTS, file=file)
    extract_folder(request_)
    (request_.videos / "ward" / "long.mp4").unlink()
    listed(request_.videos, *CUTS, file=file, more="copy.mp4,wave,,,,1,2\n")  # the same content, listed otherwise
    report = extract_folder(request_)
    assert (report.extracted, report.failed_clips, report.unlisted) == (1, 4, 0)


def test_an_extraction_of_a_folder_inside_takes_no_labels(request_):
    listed(request_.videos, *CUTS, more="ward/short.mp4,run,,,,,\n")
    extract_folder(request_)
    before = labels_of(request_)
    inside = replace(request_, videos=request_.videos / "ward")
    report = extract_folder(inside)
    assert (report.extracted, report.unlisted) == (1, 0)  # the long file, whole and without a label
    assert labels_of(request_) == {**before, "long.mp4": None}
    (inside.videos / "labels.csv").write_text("path,label,start_s,end_s\nlong.mp4,fall,1,2\nshort.mp4,fall,,\n")
    assert extract_folder(inside).unlisted == 1  # the whole file, which this folder listed itself
    assert {name: label for name, label in labels_of(request_).items() if label} == {
        **dict.fromkeys(names(*CUTS), "wave"),
        "long.mp4#t=1,2": "fall",
        "short.mp4": "fall",
    }


def test_an_extraction_of_a_folder_around_takes_no_labels(request_):
    inside = replace(request_, videos=request_.videos / "ward")
    listed(inside.videos, *CUTS, file="long.mp4")
    extract_folder(inside)
    report = extract_folder(request_)  # without a labels.csv: whole files of the class "ward"
    assert (report.extracted, report.unlisted) == (2, 0)
    assert set(labels_of(request_).values()) == {"wave", "ward"}


def test_a_file_that_is_moved_and_listed_otherwise_takes_the_old_labels(request_):
    listed(request_.videos, *CUTS)
    extract_folder(request_)
    (request_.videos / "ward" / "long.mp4").rename(request_.videos / "long.mp4")
    listed(request_.videos, (0, 3), file="long.mp4")
    assert extract_folder(request_).unlisted == 4
    (request_.videos / "long.mp4").rename(request_.videos / "ward" / "long.mp4")
    listed(request_.videos, (0, 5))
    assert extract_folder(request_).unlisted == 5
