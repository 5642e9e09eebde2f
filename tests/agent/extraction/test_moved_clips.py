"""Clips and tables that are exchanged for links after they were found: nothing outside of the folder is read."""

import os
import threading

import pytest
from flamest.agent.extraction import contents, extract
from flamest.agent.extraction.clips import scan_clips
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.extraction.store import FeatureStore
from flamest.base.errors import DataError
from flamest.base.files import read_regular, sha256_bytes

PRIVATE = "private-film"


@pytest.fixture
def place(clips, tmp_path):
    """A folder of one clip, and another clip outside of it."""
    clips.write_clip(tmp_path / "videos" / "wave" / "a.avi", frames=12)
    clips.write_clip(tmp_path / PRIVATE / "a.avi", frames=16)
    return tmp_path


def link_the_clip(place):
    clip = place / "videos" / "wave" / "a.avi"
    clip.unlink()
    clip.symlink_to(place / PRIVATE / "a.avi")


def link_its_folder(place):
    (place / "videos" / "wave").rename(place / "away")
    (place / "videos" / "wave").symlink_to(place / PRIVATE)


def link_in_two_steps(place):
    (place / "videos" / "step").symlink_to("../" + PRIVATE)
    (place / "videos" / "wave" / "a.avi").unlink()
    (place / "videos" / "wave" / "a.avi").symlink_to("../step/a.avi")


def link_the_whole_folder(place):
    (place / "videos").rename(place / "away")
    (place / "wave").symlink_to(PRIVATE)
    (place / "videos").symlink_to(place)


def link_through_proc(place):
    clip = place / "videos" / "wave" / "a.avi"
    clip.unlink()
    clip.symlink_to(f"/proc/self/root{place / PRIVATE / 'a.avi'}")


MOVES = [link_the_clip, link_its_folder, link_in_two_steps, link_the_whole_folder, link_through_proc]


def extract_all(place, bundle, found):
    request = ExtractRequest(bundle, place / "videos", place / "s.sqlite", threads=1)
    return extract.extract_clips(request, found, on_clip=lambda: None, stop=lambda: False)


@pytest.mark.parametrize("move", MOVES)
def test_a_clip_linked_elsewhere_after_the_scan_is_not_read(toy_bundle, place, move):
    found = extract.clips_to_extract(place / "videos")
    move(place)
    report = extract_all(place, toy_bundle, found)
    assert [failed.code for failed in report.failed] == ["outside_folder"]
    assert report.extracted == 0
    assert PRIVATE not in report.failed[0].reason


@pytest.mark.parametrize("move", MOVES)
def test_a_clip_linked_elsewhere_after_its_hash_is_not_decoded(toy_bundle, place, move, monkeypatch):
    found = extract.clips_to_extract(place / "videos")
    known = contents.content_hash

    def then_move(*arguments):
        digest = known(*arguments)
        move(place)
        return digest

    monkeypatch.setattr(contents, "content_hash", then_move)
    report = extract_all(place, toy_bundle, found)
    assert [failed.code for failed in report.failed] == ["outside_folder"]
    assert report.extracted == 0


def test_a_link_that_comes_and_goes_leads_nowhere(toy_bundle, place):
    clip, private = place / "videos" / "wave" / "a.avi", place / PRIVATE / "a.avi"
    outside = sha256_bytes(private.read_bytes())
    (place / "honest").write_bytes(clip.read_bytes())
    over = threading.Event()

    def exchange():
        while not over.is_set():
            for make in (lambda new: new.symlink_to(private), lambda new: os.link(place / "honest", new)):
                make(new := place / "new")
                new.replace(clip)

    attacker = threading.Thread(target=exchange)
    attacker.start()
    try:
        for _ in range(5):
            try:
                found = extract.clips_to_extract(place / "videos")
            except DataError:
                continue
            extract_all(place, toy_bundle, found)
    finally:
        over.set()
        attacker.join()
    with FeatureStore.open(place / "s.sqlite") as store:
        kinds = store.kinds()
        assert outside not in (store.read().clips if kinds else ())


def test_a_table_linked_elsewhere_shows_nothing_of_it(place, monkeypatch):
    table = place / "videos" / "labels.csv"
    table.write_text("path,label\n")
    (place / "secret").write_text("hunter2,x\n")

    def linked(*arguments, **settings):
        table.unlink(missing_ok=True)
        table.symlink_to(place / "secret")
        return read_regular(*arguments, **settings)

    monkeypatch.setattr("flamest.agent.extraction.labels_table.read_regular", linked)
    with pytest.raises(DataError) as caught:
        scan_clips(place / "videos")
    assert caught.value.code == "labels_csv"
    assert "hunter2" not in caught.value.message


def test_links_inside_the_folder_are_read_as_before(toy_bundle, place, clips):
    clips.write_clip(place / "videos" / "shelf" / "b.avi", frames=14)
    (place / "videos" / "wave" / "c.avi").symlink_to("../shelf/b.avi")
    (place / "front").symlink_to("videos")
    found = extract.clips_to_extract(place / "front")
    report = extract_all(place, toy_bundle, found)
    assert report.extracted == 2
