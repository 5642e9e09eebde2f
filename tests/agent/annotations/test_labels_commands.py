"""The commands import-labels and export-labels, as a person and as a program meet them."""

from __future__ import annotations

import json

import pytest
from flamest.agent.cli.main import app
from flamest.agent.extraction.clips import scan_clips
from typer.testing import CliRunner


@pytest.fixture
def folder(tmp_path, clips):
    clips.write_clip(tmp_path / "v" / "walk" / "a.avi", frames=50, noise=10)
    clips.write_clip(tmp_path / "v" / "long.avi", frames=100, noise=10)
    return tmp_path / "v"


def run(*words, code=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done


def result(*words, code=0):
    return json.loads(run(*words, "--json", code=code).stdout.splitlines()[-1])


def cvat(path):
    path.write_text(
        "<annotations><version>1.1</version><meta><source>LONG.avi</source></meta>"
        '<track id="0" label="fall"><box frame="10" outside="0"/><box frame="20" outside="1"/></track></annotations>'
    )
    return path


def test_a_dry_run_writes_nothing(folder, tmp_path):
    shown = run("import-labels", cvat(tmp_path / "c.xml"), "--videos", folder, "--dry-run").output
    assert "LONG.avi -> long.avi (in another case)" in shown
    assert "nothing was written (--dry-run); 1 row would be" in shown
    assert sorted(path.name for path in folder.iterdir()) == ["long.avi", "walk"]


def test_an_import_is_shown_and_written(folder, tmp_path):
    done = result("import-labels", cvat(tmp_path / "c.xml"), "--videos", folder)
    assert done["written"]
    assert done["clips"] == {"new": 1, "changed": 0, "equal": 0, "conflicting": 0}
    rate = 100 / (scan_duration(folder / "long.avi"))
    (segment,) = [clip.segment for clip in scan_clips(folder).clips if clip.segment]
    assert segment.start_s == pytest.approx(10 / rate, abs=1e-5)
    assert segment.end_s == pytest.approx(20 / rate, abs=1e-5)
    assert not result("import-labels", cvat(tmp_path / "c.xml"), "--videos", folder)["written"]


def scan_duration(path):
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return 100 / float(stream.average_rate)


@pytest.mark.parametrize("format", ["activitynet", "segments"])
def test_exported_labels_make_the_same_rows_again(folder, tmp_path, format):
    rows = ("long.avi,fall,0.5,1.25,p1", "long.avi,sit,1,2,p2", "walk/a.avi,walk,,,", "long.avi,,,,")
    (folder / "labels.csv").write_text("\n".join(("path,label,start_s,end_s,person", *rows)) + "\n")
    out = tmp_path / "out.file"
    done = result("export-labels", "--videos", folder, "--format", format, "--out", out)
    assert (done["clips"], done["unlabelled"]) == (3, 1)
    run("export-labels", "--videos", folder, "--format", format, "--out", out, code=2)
    again = result("import-labels", out, "--videos", folder)
    assert again["clips"] == {"new": 0, "changed": 0, "equal": 3, "conflicting": 0}
    (folder / "labels.csv").write_text("path,label\n")
    assert result("import-labels", out, "--videos", folder)["clips"]["new"] == 3
    assert result("import-labels", out, "--videos", folder)["clips"]["equal"] == 3


@pytest.mark.parametrize("format", ["activitynet", "segments"])
def test_an_export_names_files_not_the_spellings_of_rows(folder, tmp_path, format):
    rows = ("LONG.AVI,fall,0.5,1.25", "long.avi,sit,2,3", "Walk\\A.avi,walk,,")
    (folder / "labels.csv").write_text("\n".join(("path,label,start_s,end_s", *rows)) + "\n")
    out = tmp_path / "out.file"
    done = result("export-labels", "--videos", folder, "--format", format, "--out", out)
    assert done["durations_unknown"] == []
    if format == "activitynet":
        database = json.loads(out.read_text())["database"]
        assert {path: len(entry["annotations"]) for path, entry in database.items()} == {"long.avi": 2, "walk/a.avi": 1}
        assert all(entry["duration"] > 0 for entry in database.values())
    again = result("import-labels", out, "--videos", folder)
    assert (again["clips"]["equal"], again["videos"][0]["how"]) == (3, "")


def test_one_bad_file_of_several_stops_no_other(folder, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    done = result("import-labels", bad, cvat(tmp_path / "c.xml"), tmp_path / "gone.csv", "--videos", folder)
    assert done["clips"]["new"] == 1
    assert [problem["code"] for problem in done["problems"]] == ["annotations_json", "storage"]
    assert result("import-labels", bad, "--videos", folder, code=65)["error"]["code"] == "annotations_json"


def test_an_import_of_nothing_is_an_error_with_the_lines(folder, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("video,label,start,end\ngone.mp4,fall,1,2\n")
    done = result("import-labels", file, "--videos", folder, code=65)
    assert done["error"]["code"] == "no_annotations"
    assert [problem["code"] for problem in done["problems"]] == ["unknown_video"]
    assert "not taken over" in done["error"]["fix"]
    assert not (folder / "labels.csv").exists()


def test_a_file_without_labels_is_named_so(folder, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("video,label,start,end\n")
    done = result("import-labels", file, "--videos", folder, code=65)
    assert done["error"]["message"] == "the file has no label of a segment or of a whole video"
    assert done["problems"] == []
    shown = run("import-labels", file, file, "--videos", folder, code=65)
    assert "the files have no label" in shown.output
    assert "see " not in shown.output


def test_rows_that_are_written_are_counted(folder, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("video,label,start,end\nlong.avi,walk,1,2\nlong.avi,sit,2,3\n")
    shown = run("import-labels", file, "--videos", folder).output
    assert "2 rows written to" in shown
    assert "It is new, and lists 1 other clip of the folder" in shown
    file.write_text("video,label,start,end\nlong.avi,walk,1,2\nlong.avi,sit,2,3\nlong.avi,walk,3,4\n")
    done = result("import-labels", file, "--videos", folder)
    assert done["rows"] == {"written": 1, "removed": 0, "of_folders": 0, "others": 0}
    (folder / "labels.csv").unlink()
    assert "lists no other clip" in run("import-labels", file, "--videos", folder, "--folders", "ignore").output


def test_an_export_of_a_folder_without_labels_is_an_error(tmp_path, clips):
    clips.write_clip(tmp_path / "v" / "a.avi", frames=5, noise=10)
    done = result(
        "export-labels", "--videos", tmp_path / "v", "--format", "segments", "--out", tmp_path / "o.csv", code=65
    )
    assert done["error"]["code"] == "no_annotations"
    assert not (tmp_path / "o.csv").exists()


def test_names_in_files_reach_the_terminal_escaped(folder, tmp_path):
    file = tmp_path / "x.json"
    entry = {"annotations": [{"label": "fall", "segment": [1, 2]}]}
    file.write_text(json.dumps({"database": {"\u202egone\u009b31m.mp4": entry, "a\x1b[2J": entry}}))
    shown = run("import-labels", file, "--videos", folder, code=65).output
    assert "\x1b" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ([], {"ward-3/rec.avi fall", "walk/a.avi walk"}),
        (["--folders", "keep"], {"ward-3/rec.avi fall", "ward-3/rec.avi ward-3", "walk/a.avi walk"}),
        (["--folders", "ignore"], {"ward-3/rec.avi fall"}),
    ],
)
def test_folders_that_are_no_labels_give_imported_videos_no_class(folder, tmp_path, words, rows):
    (folder / "ward-3").mkdir()
    (folder / "long.avi").rename(folder / "ward-3" / "rec.avi")
    table = tmp_path / "sheet.csv"
    table.write_text("video,label,start,end\nrec.avi,fall,0,1\n")
    done = result("import-labels", table, "--videos", folder, *words)
    clips = scan_clips(folder).clips
    assert {f"{clip.file_name} {clip.label}" for clip in clips} == rows
    assert any("--folders keep" in note for note in done["notes"]) == (not words)


@pytest.mark.parametrize("label", ["=1+1", "+fall", "-fall", "@fall"])
def test_names_that_spreadsheets_take_for_formulas_are_noted(folder, tmp_path, label):
    file, out = tmp_path / "x.csv", tmp_path / "out.csv"
    file.write_text(f"video,label,start,end\nlong.avi,{label},1,2\n")
    done = result("import-labels", file, "--videos", folder)
    (note,) = (note for note in done["notes"] if "formulas" in note)
    assert label in note
    assert f"long.avi,{label},1,2" in (folder / "labels.csv").read_text()
    assert "formulas" in result("export-labels", "--videos", folder, "--format", "segments", "--out", out)["notes"][0]
    assert f"long.avi,{label},1,2" in out.read_text()


def test_plain_names_have_no_note_on_formulas(folder, tmp_path):
    assert not any(
        "formula" in note for note in result("import-labels", cvat(tmp_path / "c.xml"), "--videos", folder)["notes"]
    )
    done = result("export-labels", "--videos", folder, "--format", "segments", "--out", tmp_path / "out.csv")
    assert done["notes"] == []
