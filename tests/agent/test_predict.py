"""Prediction: labels and caption for each video, independent of the others."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.answers import Answers, LabelProbability
from flamest.agent.cli.main import app
from flamest.agent.cli.prediction_output import csv_header, csv_lines, prediction_lines
from flamest.agent.extraction.extract import extract_folder
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.extraction.store import FeatureStore
from flamest.agent.named_videos import find_videos
from flamest.agent.predict import Prediction, predict_videos
from flamest.agent.training.trainer import HeadTrainer, log_softmax
from flamest.base.errors import DataError
from flamest.experiments.miniworld.videos import render_dataset
from flamest.fedproto.calibration import Calibration, known_scores
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, read_model, write_model
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.clip_records import Segment
from typer.testing import CliRunner


def model_for(path, fingerprint):
    head = HeadSpec(inputs=2816, outputs=3, hidden=(8,))
    write_model(path, ModelFile(head, initial_params(head, 0), ("run", "jump", "wave"), fingerprint))
    return path


def test_every_video_gets_its_labels_or_its_reason(tiny_bundle, tmp_path):
    render_dataset(tmp_path / "c", groups=1, objects=("ball", "star"), motions=("lifting",), seed=1, processes=1)
    first, last = sorted((tmp_path / "c").glob("*/*.mp4"))
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    model = model_for(tmp_path / "m.safetensors", read_manifest(tiny_bundle).fingerprint)
    videos = [first, text, tmp_path / "missing.mp4", tmp_path, last]
    predictions = list(predict_videos(tiny_bundle, model, videos, top=2, opening=OpeningOptions(threads=1)))
    assert [prediction.video for prediction in predictions] == videos
    assert [bool(prediction.reason) for prediction in predictions] == [False, True, True, True, False]
    for prediction in (predictions[0], predictions[-1]):
        probabilities = [item.probability for item in prediction.labels]
        assert len(probabilities) == 2
        assert 1.0 >= probabilities[0] >= probabilities[1] > 0.0
        assert prediction.caption


def test_a_model_of_another_bundle_is_refused(tiny_bundle, tmp_path):
    model = model_for(tmp_path / "m.safetensors", "f" * 64)
    with pytest.raises(DataError, match="was trained on features of bundle ffffffffffff"):
        list(predict_videos(tiny_bundle, model, []))


def predicted(bundle, model, *videos) -> tuple[int, dict, str]:
    words = ["predict", *map(str, videos), "--bundle", str(bundle), "--model", str(model), "--threads", "1"]
    shown = CliRunner().invoke(app, words).output
    done = CliRunner().invoke(app, [*words, "--json"])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]), shown


def test_predict_searches_folders_and_no_bad_clip_stops_the_rest(tiny_bundle, tmp_path):
    render_dataset(tmp_path / "new", groups=1, objects=("ball",), motions=("lifting",), seed=1, processes=1)
    (tmp_path / "new" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "new" / "deep" / "er" / "text.avi").write_text("not a video")
    (tmp_path / "new" / "notes.txt").write_text("not searched for")
    (tmp_path / "empty").mkdir()
    model = model_for(tmp_path / "m.safetensors", read_manifest(tiny_bundle).fingerprint)
    code, answer, shown = predicted(tiny_bundle, model, tmp_path / "empty", tmp_path / "new")
    read = [entry for entry in answer["predictions"] if "reason" not in entry]
    assert (code, len(answer["predictions"]), len(read), answer["unread"]) == (0, 3, 1, 2)
    assert "1 of 3 videos read, 2 could not be" in shown
    assert "no video files in this folder" in shown


def test_predict_ends_with_65_when_nothing_could_be_read(tiny_bundle, tmp_path):
    (tmp_path / "text.avi").write_text("not a video")
    model = model_for(tmp_path / "m.safetensors", read_manifest(tiny_bundle).fingerprint)
    code, answer, _ = predicted(tiny_bundle, model, tmp_path / "text.avi", tmp_path / "missing.mp4")
    assert (code, answer["error"]["code"], answer["unread"]) == (65, "all_clips_failed", 2)
    assert all(entry["reason"] for entry in answer["predictions"])


def test_next_to_its_settings_predict_needs_no_option(tiny_bundle, tmp_path, monkeypatch):
    (tmp_path / "text.avi").write_text("not a video")
    connection = '[coordinator]\naddress = "h:1"\nca = "c"\ncertificate = "s"\nkey = "k"\n'
    settings = f'state = "state"\nstore = "features.sqlite"\nbundle = "{tiny_bundle}"\n{connection}'
    (tmp_path / "agent.toml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["predict", "text.avi", "--json"])
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, answer["error"]["code"]) == (65, "no_model"), "no run has ended yet"
    (tmp_path / "state").mkdir()
    model_for(tmp_path / "state" / "model.safetensors", read_manifest(tiny_bundle).fingerprint)
    done = CliRunner().invoke(app, ["predict", "text.avi", "--json", "--threads", "1"])
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, answer["error"]["code"], answer["unread"]) == (65, "all_clips_failed", 1)
    (tmp_path / "agent.toml").unlink()
    done = CliRunner().invoke(app, ["predict", "text.avi", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (2, "usage")


def test_an_empty_folder_opens_no_network(toy_bundle, tmp_path):
    model = tmp_path / "m.safetensors"
    done = CliRunner().invoke(app, ["predict", str(tmp_path), "--bundle", str(toy_bundle), "--model", str(model)])
    assert done.exit_code == 65
    assert "there are no video files in this folder" in done.stdout
    assert "ran on" not in done.stdout
    assert "give video files, or folders that hold some" in done.output


# --- segments ---


class Ward:
    """A folder of a long video, a short one, one whose name looks like a segment, and a table."""

    def __init__(self, clips, bundle, folder):
        self.folder, self.bundle, self.model = folder, bundle, folder.parent / "m.safetensors"
        clips.write_clip(folder / "long.mp4", frames=100, scenes=4, noise=10)
        clips.write_clip(folder / "short.mp4", frames=20, seed=3)
        clips.write_clip(folder / "odd.mp4#t=1,2", frames=20, seed=4, container="mp4")
        rows = ("long.mp4,wave,2,4", "long.mp4,run,0,1.5", "short.mp4,wave,,")
        (folder / "labels.csv").write_text("\n".join(("path,label,start_s,end_s", *rows)))
        head = HeadSpec(inputs=9, outputs=3, hidden=(8,))
        model = ModelFile(head, initial_params(head, 0), ("run", "jump", "wave"), read_manifest(bundle).fingerprint)
        write_model(self.model, model)

    def predicted(self, *words):
        """Exit code, and entries by file and times."""
        given = ["predict", *map(str, words), "--bundle", str(self.bundle), "--model", str(self.model), "--json"]
        done = CliRunner().invoke(app, given)
        found = json.loads(done.stdout.splitlines()[-1])["predictions"]
        return done.exit_code, {(Path(one["video"]).name, one["start_s"], one["end_s"]): one for one in found}


@pytest.fixture(scope="module")
def ward(clips, toy_bundle, tmp_path_factory):
    return Ward(clips, toy_bundle, tmp_path_factory.mktemp("made") / "ward")


@pytest.fixture(scope="module")
def entries(ward):
    """Predictions of parts and whole files, with one command."""
    odd = f"{ward.folder}/odd.mp4#t=1,2"
    parts = [f"{ward.folder}/long.mp4#t={times}" for times in ("2,4", "50,60", "3,60")]
    code, found = ward.predicted(*parts, ward.folder / "long.mp4", odd, f"{odd}#t=0,0.5")
    assert code == 0
    return found


def test_a_segment_gets_the_embedding_that_an_extraction_gives_it(ward, entries, tmp_path):
    store = tmp_path / "s.sqlite"
    extract_folder(ExtractRequest(ward.bundle, ward.folder, store, threads=1))
    with FeatureStore.open(store, read_only=True) as opened:
        found = opened.read()
    x = found.x[found.segments.index(Segment.of_seconds(2, 4))][None]
    read = read_model(ward.model)
    probability = np.exp(log_softmax(HeadTrainer(read.head, threads=1).logits(read.params, x)))[0]
    part = {one["label"]: one["probability"] for one in entries["long.mp4", 2.0, 4.0]["labels"]}
    assert part == pytest.approx(dict(zip(read.labels, probability.tolist(), strict=True)), abs=1e-6)
    assert entries["long.mp4", 2.0, 4.0]["labels"] != entries["long.mp4", None, None]["labels"]


def test_a_file_whose_name_looks_like_a_segment_is_a_file(entries):
    assert "reason" not in entries["odd.mp4#t=1,2", None, None]
    assert "reason" not in entries["odd.mp4#t=1,2", 0.0, 0.5]


def test_a_segment_outside_of_its_video_is_a_reason(entries):
    assert entries["long.mp4", 50.0, 60.0]["reason"].startswith("segment_outside: ")
    assert entries["long.mp4", 3.0, 60.0]["warnings"]


def test_a_folders_listed_clips_are_predicted_on_request(ward, tmp_path):
    listed = {("long.mp4", 0.0, 1.5), ("long.mp4", 2.0, 4.0), ("short.mp4", None, None)}
    code, found = ward.predicted("--segments", ward.folder)
    assert (code, set(found)) == (0, listed)
    videos, _ = find_videos([ward.folder])
    assert {(video.path.name, video.segment) for video in videos} == {("long.mp4", None), ("short.mp4", None)}
    code, found = ward.predicted("--segments", tmp_path)
    assert code == 65
    assert found[tmp_path.name, None, None]["reason"].startswith("no_clips: there is no labels.csv")


def test_people_see_a_segments_times_after_its_file():
    part = Prediction(Path("a.mp4"), (LabelProbability("wave", 0.5),), segment=Segment.of_seconds(1, 2.5))
    assert part.name == "a.mp4#t=1,2.5"
    assert prediction_lines(part)[0] == part.name


@pytest.mark.parametrize("times", ["", "1", "1,", "2,1", "1,1", "1,2,3", "a,b", "-1,2", "nan,2", "0:01,0:02", "0,inf"])
def test_times_that_no_segment_has_are_reported_and_the_others_read(tmp_path, times):
    videos, problems = find_videos([tmp_path / f"long.mp4#t={times}", tmp_path / "short.mp4"])
    assert [video.path.name for video in videos] == ["short.mp4"]
    assert problems[0].reason.startswith("bad_segment: there is no file of this name, and ")


# --- unknown, and tables ---


def test_below_the_threshold_the_answer_is_unknown_with_its_labels(ward):
    for threshold, answer in (("0", None), ("1", "unknown")):
        _, found = ward.predicted(ward.folder / "short.mp4", "--threshold", threshold, "--top", "2")
        one = found["short.mp4", None, None]
        assert len(one["labels"]) == 2
        assert one["answer"] == (answer or one["labels"][0]["label"])
        assert one["unknown"] is (answer is not None)


def test_a_table_has_a_row_for_every_video(ward):
    (ward.folder.parent / "no, video.mp4").write_text("not a video")
    given = [f"{ward.folder}/long.mp4#t=2,4", ward.folder / "short.mp4", ward.folder.parent / "no, video.mp4"]
    words = ["predict", *map(str, given), "--bundle", str(ward.bundle), "--model", str(ward.model), "--csv"]
    done = CliRunner().invoke(app, [*words, "--top", "4", "--threshold", "1"])
    first, second, third = csv.DictReader(io.StringIO(done.stdout))
    assert (first["start_s"], first["end_s"], first["answer"]) == ("2.0", "4.0", "unknown")
    assert {second["label_1"], second["label_2"], second["label_3"]} == {"run", "jump", "wave"}
    assert second["label_4"] == ""
    assert float(second["probability_1"]) >= float(second["probability_2"])
    assert third["video"].endswith("no, video.mp4")
    assert third["reason"].startswith("video_not_video: ")
    assert CliRunner().invoke(app, [*words, "--json"]).exit_code == 2


def test_names_of_files_cannot_add_rows_to_a_table():
    hostile = Prediction(Path('a\n"b",=1\x1b.mp4'), (LabelProbability("x,y", 0.5),), warnings=("a\rb",))
    [line] = csv_lines(hostile, 1)
    assert line.isprintable()
    [cells] = csv.reader([line])
    assert len(cells) == len(csv_header(1).split(","))


def test_without_a_threshold_the_models_own_ones_decide(tmp_path):
    head = HeadSpec(inputs=4, outputs=3, hidden=())
    plain = ModelFile(head, initial_params(head, 0), ("run", "jump", "wave"), "f")
    [probability] = Answers(plain, threads=1).probabilities(np.ones((1, 4), np.float32))
    score = float(known_scores(probability[None])[0])
    for threshold, known in ((score - 0.1, True), (score + 0.1, False)):
        model = replace(plain, calibration=Calibration(1.0, (threshold,) * 3))
        assert Answers(model, threads=1).is_known(probability) == known
        assert Answers(model, threads=1, threshold=0.0).is_known(probability)
        assert not Answers(model, threads=1, threshold=1.0).is_known(probability)
    assert Answers(plain, threads=1).is_known(probability)


def test_answers_are_calibrated_where_the_model_is():
    head = HeadSpec(inputs=4, outputs=3, hidden=())
    plain = ModelFile(head, initial_params(head, 0), ("run", "jump", "wave"), "f")
    warm = replace(plain, calibration=Calibration(4.0, (0.0,) * 3))
    x = 10 * np.ones((1, 4), np.float32)
    before, after = (Answers(model, threads=1).probabilities(x)[0] for model in (plain, warm))
    np.testing.assert_allclose(after, before**0.25 / (before**0.25).sum(), rtol=1e-6)
