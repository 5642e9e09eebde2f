"""Names that tools give videos: one file is found, or none; several are a line."""

from __future__ import annotations

import unicodedata

import pytest
from flamest.agent.annotations.video_names import VideoNames, external_path

FOLDER = [
    "ward1/a.mp4",
    "ward2/a.mp4",
    "ward2/Morning Round (1).mp4",
    "ward2/clip.avi",
    "v_sJFgo9H6zNo.mp4",
    "My film [abcdefghij1].mkv",
    "only.MP4",
    "Räume.mp4",
    "deep/down/there/x.mp4",
    "a1b2c3d4-kept.mp4",
    "B.mp4",
    "b.mp4",
    "two.mp4",
    "two.avi",
]
NAMES = {
    "ward1/a.mp4": "ward1/a.mp4",
    "/data/videos/ward2/a.mp4": "ward2/a.mp4",
    r"C:\Users\me\WARD1\a.mp4": "ward1/a.mp4",
    r"\\server\share\ward2\clip.avi": "ward2/clip.avi",
    "only.mp4": "only.MP4",
    "ONLY": "only.MP4",
    "clip": "ward2/clip.avi",
    "clip.mp4": "ward2/clip.avi",
    "https://host/videos/x.mp4?token=a.avi#t=3": "deep/down/there/x.mp4",
    "https://host/R%C3%A4ume.mp4": "Räume.mp4",
    unicodedata.normalize("NFD", "Räume.mp4"): "Räume.mp4",
    "s3://bucket/ward1/a.mp4": "ward1/a.mp4",
    "/data/local-files/?d=videos/ward2/a.mp4": "ward2/a.mp4",
    "http://localhost:8080/data/local-files/?d=videos%5Cward1%5Ca.mp4": "ward1/a.mp4",
    "/data/upload/2/0f1e2d3c-x.mp4": "deep/down/there/x.mp4",
    "/data/upload/2/0f1e2d3c-Morning_Round_1.mp4": "ward2/Morning Round (1).mp4",
    "/data/upload/2/0f1e2d3c-clip.webm": "ward2/clip.avi",
    "a1b2c3d4-kept.mp4": "a1b2c3d4-kept.mp4",
    "sJFgo9H6zNo": "v_sJFgo9H6zNo.mp4",
    "v_sJFgo9H6zNo": "v_sJFgo9H6zNo.mp4",
    "https://www.youtube.com/watch?v=sJFgo9H6zNo&t=9": "v_sJFgo9H6zNo.mp4",
    "https://youtu.be/abcdefghij1": "My film [abcdefghij1].mkv",
    "b.mp4": "b.mp4",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_finds_its_file(name):
    match = VideoNames(FOLDER).match(name)
    assert match.path == NAMES[name]
    assert bool(match.how) == (name not in FOLDER)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("a.mp4", ("ward1/a.mp4", "ward2/a.mp4")),
        ("ward3/a.mp4", ("ward1/a.mp4", "ward2/a.mp4")),
        ("two", ("two.avi", "two.mp4")),
        ("two.webm", ("two.avi", "two.mp4")),
    ],
)
def test_a_name_of_several_files_finds_none(name, candidates):
    match = VideoNames(FOLDER).match(name)
    assert match.path == ""
    assert match.candidates == candidates


@pytest.mark.parametrize(
    "name",
    [
        "",
        "other.mp4",
        "/etc/passwd",
        "../../secret.mp4",
        "....",
        "http://[bad",
        "a" * 4000,
        "x",
        "watch?v=",
        ".mp4",
        "/",
        "ward1",
    ],
)
def test_other_names_find_nothing(name):
    match = VideoNames([path for path in FOLDER if path != "deep/down/there/x.mp4"]).match(name)
    assert (match.path, match.candidates) == ("", ())


def test_other_folders_are_not_preferred_to_another_case():
    match = VideoNames(["ward1/A.mp4", "ward2/a.mp4"]).match("D:/ward2/A.mp4")
    assert match.path == "ward2/a.mp4" or set(match.candidates) == {"ward1/A.mp4", "ward2/a.mp4"}


def test_addresses_become_paths():
    assert external_path("https://h/a%2Fb.mp4?x=1") == "/a/b.mp4"
    assert external_path("c:\\x\\y.mp4") == "/x/y.mp4"
