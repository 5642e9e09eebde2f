"""Prediction: labels and caption for each video, independent of the others."""

from __future__ import annotations

import json

import pytest
from flamest.agent.cli.main import app
from flamest.agent.predict import predict_videos
from flamest.base.errors import DataError
from flamest.experiments.miniworld.videos import render_dataset
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, write_model
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.bundle.manifest_reading import read_manifest
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
