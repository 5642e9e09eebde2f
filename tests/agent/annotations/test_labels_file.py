"""Rules of editing a labels.csv: nothing is lost, whoever writes it too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flamest.agent.annotations import labels_file
from flamest.agent.annotations.labels_file import LabelsFile, PutRow, RemoveRow
from flamest.agent.extraction.clips import scan_clips
from flamest.agent.extraction.labels_table import LabelRow
from flamest.base.errors import DataError, LockedError, StorageError
from flamest.base.file_access import Access
from flamest.base.files import FileLock
from flamest.runtime.clip_records import Segment


def row(path: str, label: str | None = None, segment: Segment | None = None, **rest: str) -> LabelRow:
    return LabelRow(0, path, label, segment, rest.get("group", ""), rest.get("person", ""), rest.get("camera", ""))


def seconds(start: float, end: float) -> Segment:
    return Segment.of_seconds(start, end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("walk/a.mp4", "fall/b.mp4", "c.mp4", "long.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode())
    return path


def test_untouched_rows_and_line_ends_keep_their_bytes(folder: Path) -> None:
    table = '\ufeffpath,label,group\r\n"walk/a.mp4", walk,"g, 1"\r\n\r\nc.mp4,"jump",g2'
    path = write(folder, table)
    done = LabelsFile.open(folder).apply([PutRow(row("fall/b.mp4", "fall", group="g3"))])
    assert not done.conflicts
    assert done.written
    assert path.read_bytes() == (table + "\r\nfall/b.mp4,fall,g3\r\n").encode()


def test_a_changed_row_keeps_its_place_and_the_others_theirs(folder: Path) -> None:
    path = write(folder, "path,label\nc.mp4,jump\nwalk/a.mp4,walk\nfall/b.mp4,fall\n")
    LabelsFile.open(folder).apply([PutRow(row("walk/a.mp4", "run"), ("walk/a.mp4", None))])
    assert path.read_text() == "path,label\nc.mp4,jump\nwalk/a.mp4,run\nfall/b.mp4,fall\n"


def test_rows_that_cannot_be_used_stay_as_they_are(folder: Path) -> None:
    bad = "../x.mp4,walk\nc.mp4,walk,too,many\n"
    path = write(folder, "path,label\n" + bad)
    file = LabelsFile.open(folder)
    assert len(file.bad) == 2
    file.apply([PutRow(row("walk/a.mp4", "walk"))])
    assert path.read_text() == "path,label\n" + bad + "walk/a.mp4,walk\n"
    assert len(file.bad) == 2


def test_columns_that_a_row_needs_are_added_for_all(folder: Path) -> None:
    path = write(folder, "path,label\nlong.mp4,day\nx.mp4,too,many\n")
    file = LabelsFile.open(folder)
    file.apply([PutRow(row("long.mp4", "fall", seconds(12.5, 17), person="p1"))])
    assert path.read_text() == (
        "path,label,start_s,end_s,person\nlong.mp4,day,,,\nlong.mp4,fall,12.5,17,p1\nx.mp4,too,many,,,\n"
    )
    assert len(file.bad) == 1


def test_rows_of_one_video_stay_together(folder: Path) -> None:
    path = write(folder, "path,label,start_s,end_s\nlong.mp4,a,0,1\nc.mp4,b,,\n")
    LabelsFile.open(folder).apply([PutRow(row("long.mp4", "x", seconds(n, n + 1))) for n in (2, 3, 4)])
    lines = path.read_text().splitlines()
    assert lines[1:] == ["long.mp4,a,0,1", "long.mp4,x,2,3", "long.mp4,x,3,4", "long.mp4,x,4,5", "c.mp4,b,,"]


def test_first_write_lists_all_clips_as_the_folders_gave_them(folder: Path) -> None:
    before = {(clip.name, clip.label, clip.group) for clip in scan_clips(folder).clips}
    file = LabelsFile.open(folder)
    assert file.revision == ""
    assert {found.path: found.label for found in file.rows} == {
        "walk/a.mp4": "walk",
        "fall/b.mp4": "fall",
        "c.mp4": None,
        "long.mp4": None,
    }
    file.apply([PutRow(row("c.mp4", "jump"), ("c.mp4", None), file.find("c.mp4", None))])
    after = {(clip.name, clip.label, clip.group) for clip in scan_clips(folder).clips}
    assert after - before == {("c.mp4", "jump", "c")}
    assert before - after == {("c.mp4", None, "c")}


def test_a_file_that_gets_segments_first_is_not_listed_whole(folder: Path) -> None:
    file = LabelsFile.open(folder)
    file.apply([PutRow(row("long.mp4", "fall", seconds(1, 2)))])
    assert [(found.path, found.segment) for found in file.rows if found.path == "long.mp4"] == [
        ("long.mp4", seconds(1, 2))
    ]


def test_the_first_change_can_turn_a_whole_file_into_a_segment(folder: Path) -> None:
    file = LabelsFile.open(folder)
    done = file.apply([PutRow(row("long.mp4", "fall", seconds(1, 2)), ("long.mp4", None), row("long.mp4", None))])
    assert done.conflicts == ()
    assert [found.segment for found in file.rows if found.path == "long.mp4"] == [seconds(1, 2)]


def test_a_name_that_no_table_can_have_is_reported_not_listed(folder: Path) -> None:
    (folder / "walk" / " blank.mp4").write_bytes(b"video")
    (folder / b"walk/\xff.mp4".decode(errors="surrogateescape")).write_bytes(b"video")
    file = LabelsFile.open(folder)
    done = file.apply([PutRow(row("c.mp4", "jump"), ("c.mp4", None))])
    assert len(done.unlisted) in (1, 2)
    assert len(LabelsFile.open(folder).rows) == 4 + (2 - len(done.unlisted))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (PutRow(row("walk/a.mp4", "run")), "exists"),
        (PutRow(row("walk/a.mp4", "run"), ("walk/a.mp4", None), row("walk/a.mp4", "sit")), "changed"),
        (PutRow(row("walk/a.mp4", "run"), ("walk/a.mp4", seconds(1, 2))), "missing"),
        (PutRow(row("c.mp4", "jump"), ("walk/a.mp4", None)), "exists"),
        (RemoveRow("walk/a.mp4", None, row("walk/a.mp4", "sit")), "changed"),
        (RemoveRow("walk/a.mp4", seconds(1, 2)), "missing"),
        (PutRow(row("../outside.mp4", "walk")), "invalid"),
        (PutRow(row("/etc/passwd", "walk")), "invalid"),
        (PutRow(row(" blank.mp4", "walk")), "invalid"),
        (PutRow(row("\udcff.mp4", "walk")), "invalid"),
    ],
)
def test_a_change_that_meets_another_row_is_a_conflict(folder: Path, change: object, code: str) -> None:
    path = write(folder, "path,label\nwalk/a.mp4,walk\nc.mp4,hop\n")
    done = LabelsFile.open(folder).apply([change, PutRow(row("fall/b.mp4", "fall"))])
    assert [conflict.code for conflict in done.conflicts] == [code]
    assert path.read_text() == "path,label\nwalk/a.mp4,walk\nc.mp4,hop\nfall/b.mp4,fall\n"


def test_a_repeated_change_is_applied_once(folder: Path) -> None:
    write(folder, "path,label\nwalk/a.mp4,walk\n")
    file = LabelsFile.open(folder)
    change = PutRow(row("walk/a.mp4", "run"), ("walk/a.mp4", None), file.find("walk/a.mp4", None))
    assert file.apply([change]).written
    again = file.apply([change])
    assert not again.conflicts
    assert not again.written


def test_changes_of_an_external_editor_are_kept(folder: Path) -> None:
    path = write(folder, "path,label\nwalk/a.mp4,walk\n")
    file = LabelsFile.open(folder)
    path.write_text("path,label\nwalk/a.mp4,stroll\nc.mp4,jump\n")
    done = file.apply(
        [
            PutRow(row("walk/a.mp4", "run"), ("walk/a.mp4", None), row("walk/a.mp4", "walk")),
            PutRow(row("fall/b.mp4", "fall")),
        ]
    )
    assert [(conflict.code, conflict.found.label) for conflict in done.conflicts if conflict.found] == [
        ("changed", "stroll")
    ]
    assert path.read_text() == "path,label\nwalk/a.mp4,stroll\nc.mp4,jump\nfall/b.mp4,fall\n"


def test_an_editor_that_saves_during_the_write_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, "path,label\nwalk/a.mp4,walk\n")
    file = LabelsFile.open(folder)
    decode, saved = labels_file.TableText.encode, []

    def save_meanwhile(table: labels_file.TableText) -> bytes:
        if not saved:
            saved.append(True)
            path.write_text("path,label\nwalk/a.mp4,walk\nc.mp4,jump\n")
        return decode(table)

    monkeypatch.setattr(labels_file.TableText, "encode", save_meanwhile)
    file.apply([PutRow(row("fall/b.mp4", "fall"))])
    assert path.read_text() == "path,label\nwalk/a.mp4,walk\nc.mp4,jump\nfall/b.mp4,fall\n"


def test_backup_is_what_was_there_before_the_first_write(folder: Path) -> None:
    path = write(folder, "path,label\nwalk/a.mp4,walk\n")
    path.chmod(0o660)
    file = LabelsFile.open(folder)
    for name in ("c.mp4", "fall/b.mp4"):
        file.apply([PutRow(row(name, "x"))])
    assert (folder / "labels.csv.bak").read_text() == "path,label\nwalk/a.mp4,walk\n"
    assert path.stat().st_mode & 0o777 == 0o660


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if "labels.csv" in path.name}


@pytest.mark.parametrize(
    ("mode", "lock"), [(0o600, 0o600), (0o640, 0o600), (0o644, 0o600), (0o660, 0o660), (0o664, 0o660)]
)
def test_no_file_beside_the_table_has_more_permissions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int, lock: int
) -> None:
    write(folder, "path,label\nwalk/a.mp4,walk\n").chmod(mode)
    seen, replace = [], os.replace

    def note(old: str, new: Path) -> None:
        seen.append(Path(old).stat().st_mode & 0o777)
        replace(old, new)

    monkeypatch.setattr(os, "replace", note)
    LabelsFile.open(folder).apply([PutRow(row("c.mp4", "x"))])
    assert modes(folder) == {"labels.csv": mode, "labels.csv.bak": mode, ".labels.csv.lock": lock}
    assert seen == [mode, mode]


def test_a_group_that_cannot_be_given_leaves_another_group_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "path,label\nwalk/a.mp4,walk\n").chmod(0o660)
    others = Access.of(folder / "labels.csv")._replace(group=os.getegid() + 1)
    monkeypatch.setattr(Access, "of", lambda path: others)

    def refuse(handle: int, user: int, group: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    LabelsFile.open(folder).apply([PutRow(row("c.mp4", "x"))])
    assert set(modes(folder).values()) == {0o600}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_a_new_table_has_the_permissions_that_the_umask_leaves(folder: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        LabelsFile.open(folder).apply([PutRow(row("c.mp4", "x", seconds(1, 2)))])
    finally:
        os.umask(before)
    assert modes(folder) == {"labels.csv": mode, ".labels.csv.lock": 0o600}


def test_a_file_that_is_no_table_is_never_written_over(folder: Path) -> None:
    path = write(folder, "what,is,this\n1,2,3\n")
    with pytest.raises(DataError) as raised:
        LabelsFile.open(folder)
    assert raised.value.code == "labels_csv"
    write(folder, "path,label\n")
    file = LabelsFile.open(folder)
    write(folder, "what,is,this\n")
    with pytest.raises(DataError):
        file.apply([PutRow(row("c.mp4", "x"))])
    assert path.read_text() == "what,is,this\n"


def test_a_link_is_followed_inside_the_folder_only(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "labels.csv"
    outside.write_text("path,label\n")
    (folder / "labels.csv").symlink_to(outside)
    with pytest.raises(DataError):
        LabelsFile.open(folder)
    (folder / "labels.csv").unlink()
    (folder / "tables").mkdir()
    (folder / "tables" / "mine.csv").write_text("path,label\n")
    (folder / "labels.csv").symlink_to("tables/mine.csv")
    LabelsFile.open(folder).apply([PutRow(row("c.mp4", "jump"))])
    assert (folder / "labels.csv").is_symlink()
    assert (folder / "tables" / "mine.csv").read_text() == "path,label\nc.mp4,jump\n"
    (folder / ".labels.csv.lock").unlink()
    (folder / ".labels.csv.lock").symlink_to(outside.with_name("made"))
    with pytest.raises(StorageError):
        LabelsFile.open(folder).apply([PutRow(row("fall/b.mp4", "fall"))])
    assert not outside.with_name("made").exists()


def test_a_held_lock_is_waited_for_then_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_file, "LOCK_WAIT_S", 0.05)
    write(folder, "path,label\n")
    file = LabelsFile.open(folder)
    with FileLock.take(folder / ".labels.csv.lock", owner="test"), pytest.raises(LockedError):
        file.apply([PutRow(row("c.mp4", "x"))])
    assert file.apply([PutRow(row("c.mp4", "x"))]).written


def test_a_failed_write_leaves_file_and_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, "path,label\nwalk/a.mp4,walk\n")
    file = LabelsFile.open(folder)

    def full(*_: object, **__: object) -> None:
        raise StorageError("disk full", fix="free some space", code="disk_full")

    monkeypatch.setattr(labels_file, "write_atomic", full)
    with pytest.raises(StorageError):
        file.apply([PutRow(row("c.mp4", "x"))])
    assert path.read_text() == "path,label\nwalk/a.mp4,walk\n"
    assert [found.path for found in file.rows] == ["walk/a.mp4"]


def test_a_read_only_table_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, "path,label\n")
    monkeypatch.setattr(labels_file.os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(StorageError, match="read-only"):
        LabelsFile.open(folder).apply([PutRow(row("c.mp4", "x"))])
    assert path.read_text() == "path,label\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_table_stays_its_owners(folder: Path) -> None:
    path = write(folder, "path,label\n")
    os.chown(path, 12345, 54321)
    LabelsFile.open(folder).apply([PutRow(row("c.mp4", "x"))])
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_rows_after_writes_are_those_of_the_file(folder: Path) -> None:
    table = 'path,label\nwalk/a.mp4,walk\n../bad,x\n"c.mp4",jump\n\nfall/b.mp4,"fa""ll"\n"two\nlines.mp4",x\nlong.mp4,y'
    write(folder, table)
    file = LabelsFile.open(folder)
    for change in (
        PutRow(row("walk/a.mp4", "fall", seconds(1, 2))),
        RemoveRow("c.mp4", None),
        PutRow(row("long.mp4", "z", seconds(3, 4), person="p"), ("long.mp4", None)),
        PutRow(row("walk/a.mp4", "fall", seconds(0, 1), group="g")),
        RemoveRow("walk/a.mp4", seconds(1, 2)),
        PutRow(row("walk/a.mp4", "lie", seconds(5, 6))),
    ):
        assert not file.apply([change]).conflicts
        again = LabelsFile.open(folder)
        assert (file.rows, file.bad, file.revision) == (again.rows, again.bad, again.revision)
        assert not file.reload()


def test_many_writers_lose_no_row(folder: Path) -> None:
    def work(first: int) -> None:
        file = LabelsFile.open(folder)
        for number in range(first, first + 8):
            assert not file.apply([PutRow(row("long.mp4", "x", seconds(number, number + 1)))]).conflicts

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = LabelsFile.open(folder)
    assert len([each for each in found.rows if each.segment]) == 32
    assert not found.bad


def test_a_killed_writer_leaves_a_whole_table(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from flamest.agent.annotations.labels_file import LabelsFile, PutRow\n"
        "from flamest.agent.extraction.labels_table import LabelRow\n"
        "from flamest.runtime.clip_records import Segment\n"
        "file = LabelsFile.open(Path(sys.argv[1]))\n"
        "for n in range(100000):\n"
        "    file.apply([PutRow(LabelRow(0, 'long.mp4', 'x', Segment(n, n + 1), '', '', ''))])\n"
        "    print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        written = [int(child.stdout.readline()) for _ in range(5)]
        child.kill()
        written += [int(line) for line in child.stdout if line.endswith("\n")]
    file = LabelsFile.open(folder)
    starts = {found.segment.start_us for found in file.rows if found.segment}
    assert set(written) <= starts
    assert file.apply([PutRow(row("c.mp4", "x"), ("c.mp4", None))]).written
    assert not list(folder.glob(".labels.csv.*.tmp"))


def test_removing_and_putting_back_is_an_undo(folder: Path) -> None:
    path = write(folder, "path,label\nwalk/a.mp4,walk\nc.mp4,jump\n")
    file = LabelsFile.open(folder)
    done = file.apply([RemoveRow("walk/a.mp4", None)])
    before = done.applied[0].before
    assert before is not None
    assert path.read_text() == "path,label\nc.mp4,jump\n"
    file.apply([PutRow(before)])
    assert sorted(path.read_text().splitlines()) == ["c.mp4,jump", "path,label", "walk/a.mp4,walk"]
