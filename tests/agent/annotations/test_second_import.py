"""A second import of labels that changed in the tool: never both sets by accident, and nothing is lost."""

from __future__ import annotations

import json

import pytest
from flamest.agent.annotations.labels_file import LabelsFile
from flamest.agent.cli.main import app
from flamest.base.errors import DataError
from typer.testing import CliRunner

HAND = "path,label,start_s,end_s,person\nlong.avi,,,,\nwalk/a.avi,walk,0,1,p7\nwalk/a.avi,walk,,,\n"


@pytest.fixture
def folder(tmp_path, clips):
    clips.write_clip(tmp_path / "v" / "walk" / "a.avi", frames=50, noise=10)
    clips.write_clip(tmp_path / "v" / "long.avi", frames=100, noise=10)
    (tmp_path / "v" / "labels.csv").write_text(HAND)
    return tmp_path / "v"


@pytest.fixture
def exported(tmp_path):
    """Label Studio's export of two segments, in frames at a rate that it does not say."""
    path = tmp_path / "export.json"
    results = [
        {"type": "timelinelabels", "value": {"ranges": [{"start": first, "end": last}], "timelinelabels": [label]}}
        for first, last, label in ((2, 5, "sit"), (60, 70, "fall"))
    ]
    path.write_text(json.dumps([{"id": 1, "data": {"video": "long.avi"}, "annotations": [{"result": results}]}]))
    return path


def run(*words, code=0):
    done = CliRunner().invoke(app, ["import-labels", *(str(word) for word in words)])
    assert done.exit_code == code, done.output
    return done.output if "--json" not in words else done.stdout


def result(*words, code=0):
    return json.loads(run(*words, "--json", code=code).splitlines()[-1])


def segments(folder, video="long.avi"):
    rows = LabelsFile.open(folder).rows
    return [(row.label, row.segment.start_s, row.segment.end_s) for row in rows if row.path == video and row.segment]


AT_25 = [("sit", 0.04, 0.2), ("fall", 2.36, 2.8)]
AT_50 = [("sit", 0.02, 0.1), ("fall", 1.18, 1.4)]


def test_another_rate_writes_nothing_until_a_person_decides(folder, exported):
    run(exported, "--videos", folder, "--fps", 25)
    before = (folder / "labels.csv").read_bytes()
    done = result(exported, "--videos", folder, "--fps", 50, code=65)
    assert done["error"]["code"] == "already_segmented"
    assert "labels.csv has 2 labelled segments of long.avi" in done["error"]["message"]
    assert "1 at the time of new ones" in done["error"]["message"]
    assert "--replace" in done["error"]["fix"]
    assert "--add" in done["error"]["fix"]
    assert (done["written"], done["rows"]["others"]) == (False, 2)
    assert (folder / "labels.csv").read_bytes() == before
    assert result(exported, "--videos", folder, "--fps", 50, "--dry-run", code=65)["rows"]["others"] == 2


def test_replaced_segments_are_those_of_the_file_alone(folder, exported):
    run(exported, "--videos", folder, "--fps", 25)
    assert segments(folder) == AT_25
    trial = run(exported, "--videos", folder, "--fps", 50, "--replace", "--dry-run")
    assert "2 rows would be, and 2 rows of other segments removed" in trial
    shown = run(exported, "--videos", folder, "--fps", 50, "--replace")
    assert "2 rows written to" in shown
    assert "and 2 rows of other segments removed; what was there is in labels.csv.bak.2" in shown
    assert segments(folder) == AT_50
    assert segments(folder, "walk/a.avi") == [("walk", 0, 1)]  # of a video that is not in the file
    assert {(row.path, row.label) for row in LabelsFile.open(folder).rows if not row.segment} == {
        ("long.avi", None),
        ("walk/a.avi", "walk"),
    }
    assert not result(exported, "--videos", folder, "--fps", 50, "--replace")["written"]


def test_both_sets_are_kept_on_request_only(folder, exported):
    run(exported, "--videos", folder, "--fps", 25)
    done = result(exported, "--videos", folder, "--fps", 50, "--add")
    assert (done["rows"]["written"], done["rows"]["removed"]) == (2, 0)
    assert sorted(segments(folder)) == sorted(AT_25 + AT_50)
    assert "give one of them" in run(exported, "--videos", folder, "--add", "--replace", code=2)


def test_the_same_import_again_changes_no_byte(folder, exported):
    run(exported, "--videos", folder, "--fps", 25)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for words in ((), ("--replace",), ("--add",)):
        assert not result(exported, "--videos", folder, "--fps", 25, *words)["written"]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def table(tmp_path, *rows):
    path = tmp_path / "sheet.csv"
    path.write_text("\n".join(("video,label,start,end", *rows)) + "\n")
    return path


def test_a_moved_boundary_is_noticed(folder, tmp_path):
    run(table(tmp_path, "long.avi,fall,1,2"), "--videos", folder)
    assert "already_segmented" in run(table(tmp_path, "long.avi,fall,1,2.04"), "--videos", folder, "--json", code=65)
    run(table(tmp_path, "long.avi,fall,1,2.04"), "--videos", folder, "--replace")
    assert segments(folder) == [("fall", 1, 2.04)]


def test_more_labels_in_the_tool_need_no_decision(folder, tmp_path):
    run(table(tmp_path, "long.avi,fall,1,2"), "--videos", folder)
    run(table(tmp_path, "long.avi,fall,1,2", "long.avi,sit,2,3"), "--videos", folder)
    assert segments(folder) == [("fall", 1, 2), ("sit", 2, 3)]


def test_a_new_label_takes_the_place_of_the_old_on_request(folder, tmp_path):
    run(table(tmp_path, "walk/a.avi,walk,0,1", "walk/a.avi,run,,"), "--videos", folder)
    assert LabelsFile.open(folder).find("walk/a.avi", None).label == "walk"
    twice = table(tmp_path, "walk/a.avi,sit,0,1", "walk/a.avi,run,,", "walk/a.avi,jump,0,1")
    done = result(twice, "--videos", folder, "--replace")
    assert done["clips"] == {"new": 0, "changed": 2, "equal": 0, "conflicting": 1}
    assert "walk/a.avi,sit,0,1,p7\nwalk/a.avi,run,,,\n" in (folder / "labels.csv").read_text()


def test_every_table_before_an_import_is_kept(folder, tmp_path):
    tables = [(folder / "labels.csv").read_bytes()]
    for end in (2, 3, 4):
        run(table(tmp_path, f"long.avi,fall,1,{end}"), "--videos", folder, "--replace")
        tables.append((folder / "labels.csv").read_bytes())
    file = LabelsFile.open(folder)  # of the labelling page, which keeps one backup
    file.apply([])
    assert [(folder / f"labels.csv.bak.{number}").read_bytes() for number in (1, 2, 3)] == tables[:3]
    assert (folder / "labels.csv.bak").read_bytes() == tables[2]


def test_rows_given_twice_are_replaced_together(folder, tmp_path):
    (folder / "labels.csv").write_text(
        "path,label,start_s,end_s\nlong.avi,fall,1,2\nLONG.avi,sit,1,2\nlong.avi,sit,1,2\n"
    )
    run(table(tmp_path, "long.avi,fall,1,2.5"), "--videos", folder, "--replace")
    assert (folder / "labels.csv").read_text() == "path,label,start_s,end_s\nlong.avi,fall,1,2.5\n"


def test_a_segment_that_someone_changes_meanwhile_is_not_removed(folder, tmp_path, monkeypatch):
    run(table(tmp_path, "long.avi,fall,1,2"), "--videos", folder)
    apply = LabelsFile.apply

    def change_first(file, changes):
        text = (folder / "labels.csv").read_text()
        (folder / "labels.csv").write_text(text.replace("long.avi,fall,1,2,", "long.avi,lie,1,2,p1"))
        return apply(file, changes)

    monkeypatch.setattr(LabelsFile, "apply", change_first)
    done = result(table(tmp_path, "long.avi,fall,1,2.5"), "--videos", folder, "--replace")
    assert segments(folder) == [("lie", 1, 2), ("fall", 1, 2.5)]
    assert done["rows"]["removed"] == 0
    assert [problem["code"] for problem in done["problems"]] == ["conflict"]


def test_the_python_api_decides_the_same_way(folder, tmp_path):
    import flamest as fl

    fl.import_labels(table(tmp_path, "long.avi,fall,1,2"), videos=folder)
    changed = table(tmp_path, "long.avi,fall,1,2.5")
    with pytest.raises(DataError) as raised:
        fl.import_labels(changed, videos=folder)
    assert raised.value.code == "already_segmented"
    assert "existing='replace'" in raised.value.fix
    done = fl.import_labels(changed, videos=folder, existing="replace")
    assert (done.rows_written, done.rows_removed) == (1, 1)
    assert str(done).startswith("Labels: 1 row written to labels.csv, 1 row removed\n")
    assert segments(folder) == [("fall", 1, 2.5)]
