"""Models: written, read, and used on features and videos; bundles."""

from __future__ import annotations

import shutil

import flamest as fl
import numpy as np
import pytest

QUICK = {"recipe": "paper", "rounds": 4, "epochs": 5, "hidden": (16,), "progress": False}


def test_a_saved_model_reads_back_and_classifies_alike(split, tmp_path):
    silos, test = split
    run = fl.simulate(silos, test=test, **QUICK)
    run.save(tmp_path / "model.safetensors")
    model = fl.load_model(str(tmp_path / "model.safetensors"))
    assert model.labels == test.labels
    assert model.fingerprint == test.fingerprint
    assert model.round == 4
    assert model.accuracy(test) == run.accuracy
    assert model.classify(test) == [test.labels[number] for number in run.predicted]
    probabilities = model.probabilities(test.x)
    assert probabilities.shape == (40, 5)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert set(model.metadata) == {"accuracy", "settings"}
    assert repr(model).startswith("Model: 24-d embeddings to 5 classes, mlp [16], ")


def test_features_of_another_bundle_or_width_are_refused(split, features):
    silos, _ = split
    model = fl.simulate(silos, **QUICK).model
    other = fl.Features.from_arrays(features.x, features.names, name="other")
    with pytest.raises(fl.FlamestError, match="the model was trained on embeddings of imported:features:24"):
        model.classify(other)
    with pytest.raises(fl.FlamestError, match=r"embeddings \[3, 7\], expected \[clips, 24\]"):
        model.probabilities(np.zeros((3, 7)))
    with pytest.raises(fl.FlamestError, match="no clip has a label"):
        model.accuracy(features[:0])


def test_the_packaged_bundle_opens_by_its_name():
    bundle = fl.open_bundle("miniworld")
    assert (bundle.extractor, bundle.width, bundle.precision) == ("blip+slow", 384, "fp32")
    assert repr(bundle).startswith("Bundle: blip+slow, 384-d embeddings, fp32, ")
    with pytest.raises(fl.FlamestError):
        fl.open_bundle("no such folder")


def test_videos_get_the_labels_that_their_features_get(extracted, videos, tmp_path):
    f, _ = extracted
    run = fl.train(f, **(QUICK | {"epochs": 20, "learning_rate": 0.003}))
    run.save(tmp_path / "model.safetensors")
    clips = sorted(videos.glob("ball_*/*.mp4"))[:2]
    (tmp_path / "broken.mp4").write_text("not a video")
    found = fl.predict(
        [*clips, tmp_path / "broken.mp4"],
        model=tmp_path / "model.safetensors",
        bundle="miniworld",
        top=2,
        progress=False,
    )
    assert [each.video for each in found[:2]] == clips
    assert [each.label for each in found] == [*(clip.parent.name for clip in clips), ""]
    assert [len(each.labels) for each in found] == [2, 2, 0]
    assert found[2].reason
    (whole,) = fl.predict(str(clips[0]), model=run.model, bundle=fl.open_bundle(), progress=False)
    assert whole.labels[0] == found[0].labels[0]
    assert len(whole.labels) == 4


def test_a_folder_is_searched_as_by_the_command(extracted, videos, tmp_path):
    f, _ = extracted
    model = fl.train(f, **QUICK).model
    (tmp_path / "new").mkdir()
    shutil.copy(next(videos.glob("*/*.mp4")), tmp_path / "new" / "clip.mp4")
    (tmp_path / "new" / "labels.csv").write_text("no table")
    (tmp_path / "new" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    found = fl.predict(tmp_path / "new", model=model, bundle="miniworld", progress=False)
    assert [(each.video.name, bool(each.reason)) for each in found] == [("clip.mp4", False), ("gone.mp4", True)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(fl.FlamestError, match=r"no video was given: .*there are no video files in this folder"):
        fl.predict(tmp_path / "empty", model=model, bundle="miniworld")


def test_a_model_of_another_bundle_predicts_no_video(split, videos):
    silos, _ = split
    model = fl.simulate(silos, **QUICK).model
    with pytest.raises(fl.FlamestError, match="the model was trained on features of bundle imported:fea"):
        fl.predict(videos / "ball_lifting", model=model, bundle="miniworld", progress=False)
    with pytest.raises(fl.FlamestError, match="no video was given"):
        fl.predict([], model=model, bundle="miniworld")


def test_clips_that_cannot_be_read_are_left_out_with_a_warning(videos, tmp_path):
    folder = tmp_path / "clips"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "broken.mp4").write_text("not a video")
    bundle = fl.open_bundle()
    with pytest.raises(fl.FlamestError, match=r"none of the 1 clips is usable: a/broken\.mp4: ") as raised:
        bundle.extract(folder, progress=False)
    assert raised.value.code == "all_clips_failed"
    clip = next(videos.glob("*/*.mp4"))
    (folder / "a" / "good.mp4").write_bytes(clip.read_bytes())
    with pytest.warns(UserWarning, match=r"1 of 2 clips are left out: a/broken\.mp4: ") as warned:
        f = bundle.extract(folder, progress=False)
    assert warned[0].filename == __file__
    assert (len(f), f.labels) == (1, ("a",))


def test_a_store_keeps_what_was_extracted(extracted, videos):
    f, store = extracted
    again = fl.open_bundle().extract(videos, store=store, progress=False)
    assert np.array_equal(again.x, f.x)


def test_an_export_without_pytorch_names_the_extra(monkeypatch, tmp_path):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(fl.FlamestError, match="'torch', which is not installed") as raised:
        fl.export_bundle(tmp_path / "bundle")
    assert raised.value.fix == "pip install 'flamest[export]'"


def test_an_export_has_the_options_of_the_command_and_is_opened(monkeypatch, tmp_path):
    from flamest.export import bundle as building

    requests = []

    def build(request):
        requests.append(request)
        shutil.copytree(fl.open_bundle().path, request.out)

    monkeypatch.setattr(building, "build_bundle", build)
    out = tmp_path / "bundle"
    made = fl.export_bundle(out, extractor="slow", weights="random:tiny", precision="fp16", threads=1)
    assert made.path == out
    assert requests[0].extractor.name == "slow"
    assert requests[0].threads == 1
    assert requests[0].precision.of("cnn") == "fp16"
