"""Bundles with an encoder of one's own in use: alone and after built-in networks, from files to predictions."""

from __future__ import annotations

import flamest as fl
import numpy as np
import pytest
from flamest.coordinator.admin.bundle import read_bundle_facts
from flamest.experiments.miniworld.videos import render_dataset
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.similarity import row_cosines

from .conftest import IMAGE, export


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four clips of two classes."""
    folder = tmp_path_factory.mktemp("videos")
    render_dataset(folder, groups=2, objects=("ball",), motions=("lifting", "crossing"), seed=1, processes=1)
    return folder


@pytest.fixture(scope="module")
def alone(image_bundle, videos):
    return fl.open_bundle(image_bundle).extract(videos, threads=1, progress=False)


def test_an_encoder_alone_extracts_trains_and_predicts(image_bundle, videos, alone):
    assert alone.x.shape == (4, 16)
    assert alone.vlm_width == 0
    assert np.isfinite(alone.x).all()
    assert (alone.x[:, 8:] > 0).any()  # something moves
    run = fl.train(alone, rounds=2, hidden=(), threads=1, progress=False)
    clip = next(videos.rglob("*.mp4"))
    (prediction,) = fl.predict([clip], model=run, bundle=image_bundle, progress=False)
    assert prediction.label in alone.labels


def test_the_same_clips_give_the_same_bytes_again(image_bundle, videos, alone):
    again = fl.open_bundle(image_bundle).extract(videos, threads=1, progress=False)
    assert again.x.tobytes() == alone.x.tobytes()


def test_beside_slow_its_numbers_follow_those_of_slow(toml, tmp_path, videos, alone):
    path = toml(IMAGE.replace("frames = 4", 'frames = 4\nbeside = "slow"'))
    manifest = export(path, tmp_path / "bundle", weights="miniworld")
    assert manifest.extractor == "slow+tiny-image"
    assert set(manifest.graphs) == {"cnn", "cnn2", "keyframes"}
    assert read_manifest(tmp_path / "bundle").fingerprint == manifest.fingerprint
    features = fl.open_bundle(tmp_path / "bundle").extract(videos, threads=1, progress=False)
    assert features.x.shape[1] == manifest.width == 256 + 16
    there = dict(zip(alone.clips, alone.x, strict=True))
    for clip, row in zip(features.clips, features.x, strict=True):
        np.testing.assert_allclose(row[256:], there[clip], atol=1e-6)
    facts = read_bundle_facts(tmp_path / "bundle")
    assert (facts.width, facts.blocks) == (272, (256, 16))
    run = fl.train(features, rounds=1, hidden=(), threads=1, progress=False)
    assert run.model.head.inputs == 272


def test_keyframes_for_an_encoder_take_slows_first_layers(toml, tmp_path, videos, alone):
    path = toml(IMAGE.replace("frames = 4", 'frames = 4\nchoice = "keyframes"'))
    manifest = export(path, tmp_path / "bundle", weights="miniworld")
    assert set(manifest.graphs) == {"cnn", "keyframes"}
    assert set(manifest.sources) == {"keyframes", "encoder"}
    features = fl.open_bundle(tmp_path / "bundle").extract(videos, threads=1, progress=False)
    assert features.x.shape == alone.x.shape
    assert not np.allclose(features.x, alone.x)


def test_fp16_of_an_encoder_is_measured_and_near_fp32(toml, tmp_path, videos, alone):
    export(toml(IMAGE), tmp_path / "bundle", precision=["fp16"])
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.precision == "fp16"
    assert any("largest" in note for note in manifest.notes)
    features = fl.open_bundle(tmp_path / "bundle").extract(videos, threads=1, progress=False)
    np.testing.assert_allclose(features.x, alone.x, atol=5e-3)


def test_int8_of_an_encoder_is_near_fp32(toml, tmp_path, videos, alone):
    export(toml(IMAGE), tmp_path / "bundle", precision=["int8"])
    assert read_manifest(tmp_path / "bundle").precision == "int8"
    features = fl.open_bundle(tmp_path / "bundle").extract(videos, threads=1, progress=False)
    assert row_cosines(features.x, alone.x).min() > 0.995


def test_a_vision_transformer_of_a_hub_folder(toml, tmp_path, silent):
    from flamest.export.encoder.loading import open_encoder
    from flamest.export.encoder.settings import read_encoder
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    text = """
        name = "vit"
        hub = "vit"
        output = "last_hidden_state"
        frames = 2
        [preprocessing]
        size = 32
        [pooling]
        skip_tokens = 1
        over_time = "mean+motion"
    """
    path = toml(text)
    loaded, record = open_encoder(read_encoder(path))
    assert (record.source, loaded.source.name, loaded.form.width) == ("hub ViTModel", "vit", 32)
    manifest = export(path, tmp_path / "bundle")
    assert manifest.parity.graphs["cnn"].max_rel < 1e-4
    assert manifest.sources["encoder"].weights_sha256 == loaded.source.weights_sha256
