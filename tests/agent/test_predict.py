"""Prediction: labels and caption for each video, independent of the others."""

from __future__ import annotations

import pytest
from flamest.agent.predict import predict_videos
from flamest.base.errors import DataError
from flamest.experiments.miniworld.videos import render_dataset
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, write_model
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.bundle.manifest_reading import read_manifest


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
