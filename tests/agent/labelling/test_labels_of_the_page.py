"""Labels on the page: saved at once in labels.csv, by several tabs and programs, and undone."""

from __future__ import annotations

import csv
import os
import threading

import pytest
from flamest.agent.extraction.labels_table import read_labels
from flamest.agent.labelling.page_state import Known


def table(page):
    with (page.folder / "labels.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_a_label_is_in_the_file_when_the_save_is_answered(page):
    browser = page.browser()
    answer = browser.put("a.mp4", "fall").json
    assert (answer["applied"], answer["undo"], answer["conflicts"]) == (1, 1, [])
    assert {"path": "a.mp4", "label": "fall"} in table(page)
    assert answer["revision"] == browser.state()["revision"] != ""
    assert browser.video("a.mp4")["rows"] == answer["videos"][0]["rows"]
    assert [(each["label"], each["clips"]) for each in browser.state()["vocabulary"]] == [("fall", 1)]


def test_segments_of_a_video_are_rows_of_their_own(page):
    browser = page.browser()
    browser.put("c.avi", "walk", start_s=1.5, end_s=4.25)
    browser.put("c.avi", "fall", start_s=10, end_s=12, person="p1")
    rows = [row for row in table(page) if row["path"] == "c.avi"]
    assert rows == [
        {"path": "c.avi", "label": "walk", "start_s": "1.5", "end_s": "4.25"},
        {"path": "c.avi", "label": "fall", "start_s": "10", "end_s": "12", "person": "p1"},
    ]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"start_s": 4, "end_s": 4}, "segment"),
        ({"start_s": 4, "end_s": 3}, "segment"),
        ({"start_s": 4}, "segment"),
        ({"start_s": -1, "end_s": 3}, "page_request"),
        ({"start_s": 0, "end_s": 1e300}, "page_request"),
        ({"label": "a\nb"}, "name"),
        ({"label": "\u202egnp"}, "name"),
        ({"label": "x" * 1001}, "page_request"),
        ({"label": "\ud800"}, "page_request"),
        ({"person": "\x00"}, "name"),
        ({"video": "nope"}, "no_video"),
        ({"video": "../../etc/passwd"}, "no_video"),
        ({"unknown": 1}, "page_request"),
        ({"op": "drop"}, "page_request"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_nothing_is_written(shared_page, fields, code):
    browser = shared_page.browser()
    answer = browser.put("a.mp4", **{"label": "fall", "start_s": None, "end_s": None, **fields})
    assert answer.status in (400, 404)
    assert answer.code == code
    assert not (shared_page.folder / "labels.csv").exists()


def test_hostile_names_are_given_as_text(serve, videos):
    hostile = ["<script>alert(1)<!--.mp4", "\u202e4pm.fdp.mp4", "a\nb.mp4", "'\";&.mp4", "x" * 240 + ".mp4"]
    for name in hostile:
        (videos / name).write_bytes(b"x")
    (videos / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    page = serve(videos)
    browser = page.browser()
    names = {video["name"]: video for video in browser.state()["videos"]}
    assert "<script>alert(1)<!--.mp4" in names
    assert all(name.isprintable() for name in names)
    assert names["a\\nb.mp4"]["problem"]
    assert names["caf\\udce9.mp4"]["problem"]
    for name in (hostile[0], hostile[3], hostile[4]):
        assert browser.put(name, "<img src=x>").json["applied"] == 1
    assert browser.put("\\u202e4pm.fdp.mp4", "fall").json["applied"] == 1
    assert {row["path"] for row in table(page) if row.get("label")} == {hostile[0], hostile[1], hostile[3], hostile[4]}
    assert browser.put("a\\nb.mp4", "fall").status == 409


def test_a_second_tab_that_saw_another_row_gets_a_conflict(page):
    one, other = page.browser(), page.browser()
    other.tab = "tab-2"
    seen = other.video("a.mp4")
    assert one.put("a.mp4", "fall").json["applied"] == 1
    change = {
        "op": "put",
        "video": seen["id"],
        "label": "walk",
        "replaces": {"start_s": None, "end_s": None},
        "expected": seen["rows"][0],
    }
    answer = other.post("/api/changes", {"tab": other.tab, "changes": [change]}).json
    assert (answer["applied"], answer["undo"]) == (0, 0)
    (conflict,) = answer["conflicts"]
    assert (conflict["code"], conflict["row"]["label"]) == ("changed", "fall")
    assert {"path": "a.mp4", "label": "fall"} in table(page)


def test_undo_restores_what_was_there_and_redo_makes_it_again(page):
    browser = page.browser()
    browser.put("a.mp4", "fall")
    browser.put("a.mp4", "walk")
    browser.put("b.mp4", "run", start_s=1, end_s=2)
    assert browser.state()["undo"] == 3
    again = page.browser()  # the same tab after a reload
    assert again.post("/api/undo", {"tab": "tab-1"}).json["undo"] == 2
    assert [row["start_s"] for row in again.video("b.mp4")["rows"]] in ([], [None])
    answer = again.post("/api/undo", {"tab": "tab-1"}).json
    assert (answer["undo"], answer["redo"], answer["videos"][0]["rows"][0]["label"]) == (1, 2, "fall")
    again.post("/api/undo", {"tab": "tab-1"})
    assert [row["label"] for row in again.video("a.mp4")["rows"]] == [None]
    assert again.post("/api/undo", {"tab": "tab-1"}).json["applied"] == 0
    for _ in range(3):
        answer = again.post("/api/redo", {"tab": "tab-1"}).json
    assert (answer["undo"], answer["redo"]) == (3, 0)
    assert {"path": "a.mp4", "label": "walk"} in table(page)
    assert {"path": "b.mp4", "label": "run", "start_s": "1", "end_s": "2"} in table(page)


def test_undo_does_not_take_back_what_someone_else_wrote_since(page):
    one, other = page.browser(), page.browser()
    other.tab = "tab-2"
    one.put("a.mp4", "fall")
    one.put("b.mp4", "fall")
    other.put("b.mp4", "walk")
    answer = one.post("/api/undo", {"tab": one.tab}).json
    assert [conflict["code"] for conflict in answer["conflicts"]] == ["changed"]
    assert {"path": "b.mp4", "label": "walk"} in table(page)
    assert one.post("/api/undo", {"tab": one.tab}).json["applied"] == 1  # the step before can be undone
    assert {"path": "a.mp4"} in table(page)


def test_a_removed_row_comes_back_with_everything_by_undo(page):
    browser = page.browser()
    browser.put("a.mp4", "fall", start_s=1, end_s=2, group="g", person="p", camera="c")
    video = browser.video("a.mp4")
    row = next(row for row in video["rows"] if row["start_s"] == 1)
    change = {"op": "remove", "video": video["id"], "start_s": 1, "end_s": 2, "expected": row}
    assert browser.post("/api/changes", {"tab": "tab-1", "changes": [change]}).json["applied"] == 1
    assert row not in browser.video("a.mp4")["rows"]
    browser.post("/api/undo", {"tab": "tab-1"})
    assert row in browser.video("a.mp4")["rows"]


def test_a_table_that_another_program_saves_is_shown_and_kept(page):
    browser = page.browser()
    browser.put("a.mp4", "fall")
    (page.folder / "labels.csv").write_text("path,label,group\r\nb.mp4,walk,g7\r\nzz.mp4,run,\r\n")
    state = browser.state()
    rows = {video["name"]: [row["label"] for row in video["rows"]] for video in state["videos"]}
    assert rows == {"a.mp4": [], "b.mp4": ["walk"], "c.avi": [], "d.webm": [], "zz.mp4": ["run"]}
    assert browser.video("zz.mp4")["problem"] == "there is no such file in the folder"
    browser.put("c.avi", "fall")
    assert (page.folder / "labels.csv").read_bytes() == (
        b"path,label,group\r\nb.mp4,walk,g7\r\nzz.mp4,run,\r\nc.avi,fall,\r\n"
    )


def test_a_damaged_table_is_shown_and_never_written_over(page):
    browser = page.browser()
    browser.put("a.mp4", "fall")
    damaged = b'path,label\na.mp4,"fall\n'
    (page.folder / "labels.csv").write_bytes(damaged)
    state = browser.state()
    assert not state["writable"]
    assert [problem["line"] for problem in state["problems"]] == [0]
    assert len(state["videos"]) == 4
    answer = browser.put("b.mp4", "walk")
    assert (answer.status, answer.code) == (409, "labels_csv")
    assert (page.folder / "labels.csv").read_bytes() == damaged
    (page.folder / "labels.csv").write_text("path,label\na.mp4,fall\n")
    assert browser.put("b.mp4", "walk").json["applied"] == 1


@pytest.mark.parametrize(("number", "status", "code"), [(28, 507, "disk_full"), (30, 500, "storage")])
def test_a_disk_that_takes_nothing_is_an_error_of_the_save(page, monkeypatch, number, status, code):
    browser = page.browser()
    browser.put("a.mp4", "fall")
    before = (page.folder / "labels.csv").read_bytes()

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("flamest.base.files.tempfile.mkstemp", fails)
        answer = browser.put("b.mp4", "walk")
        assert (answer.status, answer.code) == (status, code)
        assert browser.state()["undo"] == 1
    assert (page.folder / "labels.csv").read_bytes() == before
    assert browser.put("b.mp4", "walk").json["applied"] == 1


def test_two_servers_of_one_folder_lose_nothing(serve, videos):
    one, other = serve(videos).browser(), serve(videos).browser()
    for index in range(10):
        assert one.put("a.mp4", "fall", start_s=index, end_s=index + 0.5).json["applied"] == 1
        assert other.put("b.mp4", "walk", start_s=index, end_s=index + 0.5).json["applied"] == 1
    assert len([row for row in one.video("b.mp4")["rows"] if row["label"]]) == 10
    assert len([row for row in other.video("a.mp4")["rows"] if row["label"]]) == 10


def test_alias_lines_are_toml_whatever_the_label(page):
    import tomllib

    label = 'a "quoted" \\ label = ü\t'
    lines = page.browser().post("/api/alias", {"label": label, "as": "fall"}).json["lines"]
    assert tomllib.loads(lines) == {"labels": {"alias": {label: "fall"}}}


def test_a_program_that_reads_meanwhile_sees_whole_tables_with_every_saved_label(page):
    browser = page.browser()
    browser.put("a.mp4", "fall", start_s=0, end_s=1)
    saved, problems = [0], []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            least = len(saved)
            found = read_labels(page.folder, page.folder.resolve())
            if found.bad or len([row for row in found.rows if row.segment]) < least:
                problems.append((found.bad, least))

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(1, 40):
        if browser.put("a.mp4", "fall", start_s=index, end_s=index + 1).json["applied"] == 1:
            saved.append(index)
    done.set()
    reader.join()
    assert len(saved) == 40
    assert problems == []


def test_a_table_written_in_place_is_read_once_it_is_whole(page):
    browser = page.browser()
    browser.put("a.mp4", "fall")
    with (page.folder / "labels.csv").open("w") as file:
        file.write('path,label\na.mp4,"wa')
        file.flush()
        assert browser.state()["problems"]
        assert browser.put("b.mp4", "run").status == 409
        file.write('lk"\n')
    assert browser.put("b.mp4", "run").json["applied"] == 1
    assert [(row["path"], row["label"]) for row in table(page)] == [("a.mp4", "walk"), ("b.mp4", "run")]


def test_a_table_that_is_removed_gives_way_to_the_folders(page):
    browser = page.browser()
    browser.put("a.mp4", "fall")
    (page.folder / "labels.csv").unlink()
    assert browser.state()["revision"] == ""
    assert [row["label"] for row in browser.video("a.mp4")["rows"]] == [None]
    assert browser.put("b.mp4", "run").json["applied"] == 1


def test_the_rules_and_aliases_of_the_settings_are_the_pages(serve, videos):
    known = Known(("fall", "walking"), {"gehen": "walking"})
    browser = serve(videos, known=known).browser()
    browser.put("a.mp4", "gehen")
    browser.put("b.mp4", "Walkin")
    state = browser.state()
    assert (state["run"], state["aliases"]) == (True, {"gehen": "walking"})
    assert [(each["label"], each["in_run"], each["clips"]) for each in state["vocabulary"]] == [
        ("fall", True, 0),
        ("walking", True, 0),
        ("Walkin", False, 1),
        ("gehen", False, 1),
    ]
    assert browser.get("/api/near?label=FALL").json == {"near": ["fall"]}
    assert browser.get("/api/near?label=gehen").json == {"near": []}
    assert browser.get("/api/near?label=%3Cscript%3E").json == {"near": []}
