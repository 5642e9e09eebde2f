"""This silo's labels against the run's classes: near misses, aliases, and which folder is the class."""

from types import SimpleNamespace

import pytest
from flamest.agent.config_check import clip_warnings, label_notes
from flamest.agent.settings import load_agent_settings
from flamest.base.errors import DataError

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


def silo(folder, names, settings="", table=None):
    for name in names:
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / name).touch()
    if table:
        (folder / "videos" / "labels.csv").write_text(table)
    (folder / "agent.toml").write_text(SETTINGS + settings)
    return load_agent_settings(folder / "agent.toml")


RUN = SimpleNamespace(labels=("fall", "walk"), fingerprint="f")
DEEP = [f"{label}/person{person}/{number}.mp4" for label in RUN.labels for person in (1, 2, 3) for number in (1, 2)]


def test_labels_that_are_classes_need_no_note(tmp_path):
    assert label_notes(silo(tmp_path, ["fall/1.mp4", "walk/1.mp4"]), RUN) == []


def test_a_near_miss_is_named_with_the_lines_to_add(tmp_path):
    notes = label_notes(silo(tmp_path, ["Falling/1.mp4", "walk/1.mp4", "sit/1.mp4"]), RUN)
    assert notes == [
        "labels that are no class of the run, whose clips are not used: Falling, sit",
        '\'Falling\' may be the run\'s fall: if so, under [labels.alias] in agent.toml: "Falling" = "fall"',
    ]


def test_an_alias_makes_a_class_and_a_wrong_one_is_named(tmp_path):
    names = ["Sturz/1.mp4", "walk/1.mp4"]
    assert label_notes(silo(tmp_path, names, '[labels.alias]\n"Sturz" = "fall"'), RUN) == []
    notes = label_notes(silo(tmp_path, names, '[labels.alias]\n"Sturz" = "tumble"'), RUN)
    assert notes[-1] == "[labels.alias] names what is no class of the run: tumble"


def test_without_any_class_the_error_names_the_lines_to_add(tmp_path):
    with pytest.raises(DataError) as caught:
        label_notes(silo(tmp_path, ["Falls/1.mp4", "WALK/1.mp4"]), RUN)
    assert '"Falls" = "fall", "WALK" = "walk"' in caught.value.fix
    with pytest.raises(DataError) as caught:
        label_notes(silo(tmp_path / "b", ["Sturz/1.mp4"]), RUN)
    assert "[labels.alias]" in caught.value.fix


def test_the_reading_that_matches_the_run_is_said(tmp_path):
    with pytest.raises(DataError) as caught:
        label_notes(silo(tmp_path, DEEP), RUN)
    assert "the outermost folders are the run's classes (2 of 2: fall, walk)" in caught.value.message
    assert "the folders that hold the clips are not (0 of 3)" in caught.value.message
    assert 'folder = "top"' in caught.value.fix
    assert label_notes(silo(tmp_path, [], '[labels]\nfolder = "top"'), RUN) == []


def test_the_parent_reading_that_matches_is_not_doubted(tmp_path):
    names = [f"ward-{ward}/{label}/1.mp4" for ward in (1, 2) for label in RUN.labels]
    assert label_notes(silo(tmp_path, names), RUN) == []


def test_a_check_says_that_a_rare_class_is_in_no_update(tmp_path):
    names = [*(f"fall/{number}.mp4" for number in range(280)), *(f"walk/{number}.mp4" for number in range(3))]
    warnings = clip_warnings(silo(tmp_path, names, "[policy]\nhold_out = 0.0\n"))
    assert warnings[-1].startswith("of some classes there are fewer than 10 clips to train on: about 3 clips")
    enough = clip_warnings(silo(tmp_path / "enough", names[:280], "[policy]\nhold_out = 0.0\n"))
    assert not any("in no update" in warning for warning in enough)


def test_a_check_says_doubts_and_rows_that_cannot_be_used(tmp_path):
    table = "path,label,start_s,end_s\na.mp4,fall,1,5\na.mp4,walk,3,2\n"
    warnings = clip_warnings(silo(tmp_path, ["a.mp4"], table=table))
    assert any("policy.min_samples" in warning for warning in warnings)
    assert "1 clip that cannot be used; labels.csv, line 3: the segment from 3 to 2 s is empty" in warnings[-1]
    deep = clip_warnings(silo(tmp_path / "deep", DEEP))
    assert any('folder = "top"' in warning for warning in deep)
