"""The clips of a folder: class and group of each, and the problems of the other files."""

import os
from pathlib import Path

import pytest
from flamest.agent.extraction.clips import find_clips, scan_clips
from flamest.agent.extraction.groups import default_group
from flamest.base.errors import DataError, StorageError


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def labels_csv(folder, text):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder


def found(folder):
    return {clip.name: (clip.label, clip.group) for clip in find_clips(folder)}


def problems(folder):
    return {problem.name: problem.code for problem in scan_clips(folder).problems}


def test_the_folder_that_holds_a_clip_is_its_label_at_any_depth(tmp_path):
    put(tmp_path, "wave/a.avi", "wave/b.MP4", "UCF-101/train/Punch/c.mkv", "loose.webm")
    assert found(tmp_path) == {
        "wave/a.avi": ("wave", "a"),
        "wave/b.MP4": ("wave", "b"),
        "UCF-101/train/Punch/c.mkv": ("Punch", "c"),
        "loose.webm": (None, "loose"),
    }


def test_clips_are_sorted_by_name(tmp_path):
    put(tmp_path, *(f"{label}/{number}.avi" for label in "cab" for number in (2, 1)))
    assert list(found(tmp_path)) == ["a/1.avi", "a/2.avi", "b/1.avi", "b/2.avi", "c/1.avi", "c/2.avi"]


def test_files_that_are_no_videos_and_hidden_ones_are_ignored(tmp_path):
    put(tmp_path, "wave/a.avi", "wave/notes.txt", "wave/Thumbs.db", "wave/._a.avi", ".trash/wave/b.avi", "README.md")
    assert list(found(tmp_path)) == ["wave/a.avi"]
    assert problems(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["!!!.avi", "(HQ) 300+ Yards.avi", "%d.avi", "-rf.avi", "ünïcode 日本.avi", "a'b\"c.avi", " .avi"]
)
def test_unusual_names_are_found(tmp_path, name):
    put(tmp_path, f"wave (2)/{name}")
    assert found(tmp_path)[f"wave (2)/{name}"][0] == "wave (2)"


def test_unprintable_names_are_escaped_and_their_files_opened(tmp_path):
    folder = os.fsencode(tmp_path) + b"/wave\xff"
    os.mkdir(folder)
    for name in (b"/a\xe9.avi", b"/new\nline.avi"):
        with open(folder + name, "wb") as file:  # noqa: PTH123 (bytes)
            file.write(b"x")
    clips = find_clips(tmp_path)
    assert len(clips) == 2
    for clip in clips:
        assert clip.name.isprintable()
        assert clip.label.isprintable()
        assert clip.group.isprintable()
        (clip.name + clip.label + clip.group).encode("utf-8")
        assert clip.path.read_bytes() == b"x"


@pytest.mark.parametrize(
    ("stem", "label", "group"),
    [
        ("v_SoccerJuggling_g23_c01", "SoccerJuggling", "SoccerJuggling_g23"),
        ("hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6", "cartwheel", "hmdb51_Turnk_r_Pippi_Michel"),
        ("6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3", "shoot_bow", "6arrowswithin30seconds"),
        ("6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3", None, "6arrowswithin30seconds_shoot_bow"),
        (
            "Golf_Tips_-_Hit_The_Driver_300+_Yards!!!_golf_f_nm_np1_fr_med_0",
            "golf",
            "Golf_Tips_-_Hit_The_Driver_300+_Yards!!!",
        ),
        ("-0Ym9n5dk9M_000010_000020", "wave", "-0Ym9n5dk9M"),
        ("set1_26_5_2", "kick", "set1_5"),
        ("anything else", "kick", "anything else"),
    ],
)
def test_the_scene_is_read_from_names_of_known_data_sets(stem, label, group):
    assert default_group(stem, label) == group


def test_clips_cut_from_one_video_share_a_group(tmp_path):
    names = [f"wave/TrumanShow_wave_f_nm_np1_fr_med_{number}.avi" for number in (1, 26)]
    put(tmp_path, *names)
    assert {group for _, group in found(tmp_path).values()} == {"TrumanShow"}


# --- labels.csv ---


def test_a_labels_csv_lists_the_clips_with_labels_and_groups(tmp_path):
    put(tmp_path, "x/1.mp4", "x/2.mp4", "x/3.bin", "x/not-listed.mp4")
    labels_csv(tmp_path, "path,label,group\nx/1.mp4,fall,patient-17\nx/2.mp4,,\n\nx/3.bin,fall,\n")
    assert found(tmp_path) == {
        "x/1.mp4": ("fall", "patient-17"),
        "x/2.mp4": (None, "2"),
        "x/3.bin": ("fall", "3"),
    }


def test_a_labels_csv_from_a_spreadsheet_is_read(tmp_path):
    put(tmp_path, "a, b.mp4")
    (tmp_path / "labels.csv").write_bytes('\ufeffpath,label\r\n"a, b.mp4", wave \r\n'.encode())
    assert found(tmp_path) == {"a, b.mp4": ("wave", "a, b")}


def test_a_listed_clip_that_is_missing_is_reported(tmp_path):
    put(tmp_path, "1.mp4")
    labels_csv(tmp_path, "path,label\n1.mp4,fall\n2.mp4,fall\n")
    assert list(found(tmp_path)) == ["1.mp4"]
    assert problems(tmp_path) == {"2.mp4": "missing"}


def test_a_labels_csv_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"path,label\n\xff.mp4,x\n")
    with pytest.raises(DataError, match="not UTF-8"):
        find_clips(tmp_path)


# --- what must not be opened ---


def test_links_that_lead_outside_are_reported_and_not_followed(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "videos"
    put(outside, "secret.avi", "wave/secret.avi")
    put(folder, "wave/a.avi")
    (folder / "wave" / "link.avi").symlink_to(outside / "secret.avi")
    (folder / "linked").symlink_to(outside / "wave")
    assert list(found(folder)) == ["wave/a.avi"]
    assert problems(folder) == {"wave/link.avi": "outside_folder", "linked": "outside_folder"}
    labels_csv(folder, "path,label\nwave/link.avi,x\nlinked/secret.avi,x\n")
    assert found(folder) == {}
    assert problems(folder) == {"wave/link.avi": "outside_folder", "linked/secret.avi": "outside_folder"}


def test_links_inside_the_folder_are_followed_and_loops_end(tmp_path):
    put(tmp_path, "all/1.avi")
    (tmp_path / "wave").mkdir()
    (tmp_path / "wave" / "1.avi").symlink_to("../all/1.avi")
    (tmp_path / "wave" / "again").symlink_to(tmp_path)
    (tmp_path / "wave" / "loop.avi").symlink_to("loop.avi")
    assert list(found(tmp_path)) == ["all/1.avi", "wave/1.avi"]
    assert problems(tmp_path) == {"wave/again": "linked_folder", "wave/loop.avi": "unreadable"}


def test_an_unreadable_subfolder_is_reported_and_the_rest_found(tmp_path, monkeypatch):
    """lost+found of a disk belongs to root. Faked: permissions do not bind who may run the tests."""
    put(tmp_path, "wave/a.avi", "lost+found/x.avi")
    scandir, refused = os.scandir, []

    def guarded(folder):
        if Path(folder) in refused:
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    refused.append(tmp_path / "lost+found")
    assert list(found(tmp_path)) == ["wave/a.avi"]
    (problem,) = scan_clips(tmp_path).problems
    assert (problem.name, problem.code) == ("lost+found", "unreadable")
    assert problem.reason == "this folder cannot be read: Permission denied"
    refused.append(tmp_path)
    with pytest.raises(StorageError, match=r"cannot read the folder .*: Permission denied"):
        scan_clips(tmp_path)


def test_the_folder_itself_may_be_a_link(tmp_path):
    put(tmp_path / "real", "wave/a.avi")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert list(found(tmp_path / "link")) == ["wave/a.avi"]


def test_pipes_and_broken_links_are_reported_without_waiting(tmp_path):
    put(tmp_path, "wave/a.avi")
    os.mkfifo(tmp_path / "wave" / "pipe.avi")
    (tmp_path / "wave" / "gone.avi").symlink_to("nowhere.avi")
    assert problems(tmp_path) == {"wave/pipe.avi": "video_not_a_file", "wave/gone.avi": "missing"}


def test_a_path_that_is_no_folder_is_an_error_naming_it(tmp_path):
    with pytest.raises(StorageError, match="nowhere is not a folder"):
        find_clips(tmp_path / "nowhere")
    with pytest.raises(StorageError):
        find_clips(Path("/dev/null"))


def test_a_clips_class_and_group_depend_on_no_other_clip(tmp_path):
    names = [
        f"{label}/{who}_{label}_{number}.mp4" for label in "xy" for who in ("lena", "p1", "b") for number in (1, 2)
    ]
    put(tmp_path, *names)
    before = found(tmp_path)
    for name in names:
        (tmp_path / name).unlink()
        assert found(tmp_path) == {other: said for other, said in before.items() if other != name}
        put(tmp_path, name)
