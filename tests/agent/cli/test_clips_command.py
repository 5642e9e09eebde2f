"""flamest-agent clips: classes, groups with examples, warnings and problems of a folder, before an extraction."""

import json

import pytest
from flamest.agent.cli.main import app
from typer.testing import CliRunner

SETTINGS = """
state = "state"
store = "features.sqlite"
bundle = "bundle"
videos = "videos"
[coordinator]
address = "fl.example.org:7443"
ca = "ca.pem"
certificate = "silo.pem"
key = "silo.key"
"""


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def clips(*words):
    done = CliRunner().invoke(app, ["clips", *map(str, words)])
    return done.exit_code, done.stdout


def as_json(*words):
    code, shown = clips(*words, "--json")
    return code, json.loads(shown.splitlines()[-1])


def test_classes_groups_and_the_rule_are_shown_with_examples(tmp_path):
    put(tmp_path, *(f"walk/person{person}_walk_{number}.mp4" for person in (1, 2) for number in range(4)), "loose.mp4")
    code, shown = clips("--videos", tmp_path)
    assert code == 0
    assert "  walk        8 clips in 2 groups\n  (no label)  1 clip\n" in shown
    assert 'groups: 2; rule "auto": the person or scene in the name\n' in shown
    assert "  person1: 4 clips (walk/person1_walk_0.mp4, walk/person1_walk_1.mp4, walk/person1_walk_2.mp4, …)" in shown
    assert "warning" not in shown


def test_the_settings_next_to_the_command_give_the_rules(tmp_path):
    (tmp_path / "agent.toml").write_text(
        SETTINGS + '[groups]\nrule = "folder"\n[labels]\nfolder = "top"\n[labels.alias]\nwalk = "gait"\n'
    )
    put(tmp_path / "videos", "walk/anna/1.mp4", "walk/anna/2.mp4", "walk/ben/1.mp4", "walk/ben/2.mp4")
    code, answer = as_json("--dir", tmp_path)
    assert code == 0
    assert answer["classes"] == [{"label": "walk", "clips": 4, "groups": 2, "run_label": "gait"}]
    assert {each["group"] for each in answer["examples"]} == {"anna", "ben"}
    assert (answer["rule"]["name"], answer["label_folder"]) == ("folder", "top")


def test_next_to_agent_toml_the_runs_words_are_shown_for_its_videos(tmp_path, monkeypatch):
    put(tmp_path / "videos", "walk/anna_1.mp4")
    put(tmp_path / "others", "walk/anna_1.mp4")
    (tmp_path / "agent.toml").write_text(SETTINGS + '[labels.alias]\nwalk = "gait"')
    monkeypatch.chdir(tmp_path)
    called = {folder: as_json("--videos", folder)[1]["classes"][0]["run_label"] for folder in ("videos", "others")}
    assert called == {"videos": "gait", "others": "walk"}


def test_rows_problems_and_unlisted_videos_are_listed(tmp_path):
    put(tmp_path, "rec.mp4", "other.mp4")
    (tmp_path / "labels.csv").write_text(
        "path,label,start_s,end_s\nrec.mp4,fall,1,5\nrec.mp4,walk,4,8\nrec.mp4,walk,20,19\ngone.mp4,x,,\nREC.mp4,fall,30,31\n"
    )
    code, answer = as_json("--videos", tmp_path)
    assert code == 0
    assert (answer["clips"], answer["segments"], answer["unlisted"]) == (3, 3, ["other.mp4"])
    assert sum(each["clips"] for each in answer["classes"]) == 3
    assert [each["code"] for each in answer["problems"]] == ["missing", "bad_segment"]
    assert {"labels_overlap", "rows_read_otherwise"} <= {each["code"] for each in answer["warnings"]}
    assert answer["gaps"] == {"count": 1, "seconds": 22.0}
    shown = clips("--videos", tmp_path)[1]
    assert f"{tmp_path}: 3 clips (3 of them segments), by its labels.csv\n" in shown
    assert "problem: labels.csv, line 4: the segment from 20 to 19 s is empty: expected end_s after start_s\n" in shown
    assert "not in labels.csv: 1 video (other.mp4)\n" in shown


def test_without_any_usable_clip_it_ends_with_65_and_the_reason(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\ngone.mp4,x\n")
    code, answer = as_json("--videos", tmp_path)
    assert (code, answer["error"]["code"]) == (65, "no_clips")
    assert "gone.mp4: no such file" in answer["error"]["message"]
    assert answer["problems"]
    assert as_json("--videos", tmp_path / "nowhere")[0] == 65


def test_without_settings_and_videos_it_says_which_to_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, answer = as_json()
    assert code == 2
    assert "--videos DIR" in answer["error"]["fix"]


@pytest.mark.parametrize("name", ["walk/\x1b[2J.mp4", "walk/a\nb.mp4"])
def test_a_hostile_name_is_shown_escaped(tmp_path, name):
    put(tmp_path, name)
    code, shown = clips("--videos", tmp_path)
    assert code == 0
    assert "\x1b" not in shown
    assert "\nb.mp4" not in shown


def test_json_lists_every_group_with_its_clips(tmp_path):
    put(tmp_path, *(f"walk/person{person}_walk_{number}.mp4" for person in range(8) for number in range(4)))
    answer = as_json("--videos", tmp_path)[1]
    assert len(answer["every_group"]) == 8
    assert answer["every_group"][7] == {
        "group": "person7",
        "clips": 4,
        "names": [f"walk/person7_walk_{number}.mp4" for number in range(4)],
    }
    assert len(answer["examples"]) == 5
    assert len(answer["examples"][0]["names"]) == 3
