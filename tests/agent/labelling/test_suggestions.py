"""The model's suggestions: from the store first, else computed; they write nothing and hold no save up."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import pytest
from flamest.agent.cli import labelling
from flamest.agent.extraction.extract import clips_to_extract, extract_clips
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.labelling.book import LabelBook
from flamest.agent.labelling.page_state import Known
from flamest.agent.labelling.suggestion_work import SuggestionRequest
from flamest.agent.labelling.suggestions import Suggestions
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, write_model
from flamest.runtime.bundle.manifest_reading import read_manifest


@pytest.fixture
def model(toy_bundle, tmp_path):
    manifest = read_manifest(toy_bundle)
    head = HeadSpec(inputs=manifest.width, outputs=3, hidden=(8,))
    path = tmp_path / "model.safetensors"
    write_model(path, ModelFile(head, initial_params(head, 0), ("run", "jump", "wave"), manifest.fingerprint))
    return path


@pytest.fixture
def real_videos(videos: Path, clips) -> Path:
    for seed in range(3):
        clips.write_clip(videos / f"real{seed}.avi", frames=20, seed=seed)
    return videos


def wait_for(browser, names):
    for _ in range(600):
        found = {video["name"]: video["suggestion"] for video in browser.state()["videos"]}
        if all(found[name] for name in names):
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def files_of(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_videos_without_a_label_get_a_suggestion(serve, real_videos, toy_bundle, model):
    (real_videos / "labels.csv").write_text("path,label\nreal2.avi,wave\n")
    before = files_of(real_videos)
    page = serve(real_videos, suggest=SuggestionRequest(toy_bundle, model))
    browser = page.browser()
    assert browser.state()["model"]
    found = wait_for(browser, ["real0.avi", "real1.avi"])
    assert found["real0.avi"]["label"] in ("run", "jump", "wave")
    assert 1 / 3 < found["real0.avi"]["probability"] <= 1
    assert found["real2.avi"] is None  # it has a label
    assert found["a.mp4"] is None  # it is no video
    assert files_of(real_videos) == before
    assert browser.put("real0.avi", "run").json["applied"] == 1


def test_suggestions_can_be_stopped_and_started_again(serve, real_videos, toy_bundle, model):
    page = serve(real_videos, suggest=SuggestionRequest(toy_bundle, model))
    browser = page.browser()
    assert browser.post("/api/suggestions", {"on": False}).json == {"suggesting": False}
    assert not browser.state()["suggesting"]
    assert browser.put("a.mp4", "fall").json["applied"] == 1
    assert browser.post("/api/suggestions", {"on": True}).json == {"suggesting": True}
    wait_for(browser, ["real0.avi"])


def test_features_of_the_store_are_used_and_it_stays_as_it_is(serve, real_videos, toy_bundle, model):
    store = real_videos.parent / "features.sqlite"
    for name in ("a.mp4", "b.mp4", "c.avi", "d.webm"):
        (real_videos / name).unlink()
    extract_clips(
        ExtractRequest(toy_bundle, real_videos, store, threads=1),
        clips_to_extract(real_videos),
        on_clip=lambda *_: None,
        stop=bool,
    )
    before = store.read_bytes()
    wrong = real_videos.parent / "no-bundle"  # nothing is left to compute, so it is never opened
    page = serve(real_videos, suggest=SuggestionRequest(wrong, model, store))
    wait_for(page.browser(), ["real0.avi", "real1.avi", "real2.avi"])
    assert store.read_bytes() == before


def test_a_wrong_bundle_ends_the_suggestions_and_nothing_else(serve, real_videos, model, tmp_path):
    page = serve(real_videos, suggest=SuggestionRequest(tmp_path / "none", model))
    browser = page.browser()
    for _ in range(300):
        if not browser.state()["suggesting"]:
            break
        time.sleep(0.1)
    state = browser.state()
    assert (state["model"], state["suggesting"]) == (True, False)
    assert browser.put("a.mp4", "fall").json["applied"] == 1


def test_the_video_that_was_looked_at_last_is_the_next(videos):
    book = LabelBook(videos)
    suggestions = Suggestions(SuggestionRequest(videos, videos))
    names = {video.path: video for video in book.unlabelled()}
    suggestions.prefer(names["b.mp4"].id)
    suggestions.prefer(names["d.webm"].id)
    suggestions.prefer("unknown")
    order = []
    for identifier, path, size, modified in suggestions._next(book):
        order.append(path)
        suggestions._done.add((identifier, size, modified))
        if path == "a.mp4":
            suggestions.prefer(names["c.avi"].id)
    assert order == ["d.webm", "b.mp4", "a.mp4", "c.avi"]


def test_the_silo_s_settings_give_model_classes_rules_and_aliases(videos, tmp_path, toy_bundle, model):
    (tmp_path / "state").mkdir()
    shutil.copy(model, tmp_path / "state" / "model.safetensors")
    (tmp_path / "agent.toml").write_text(
        f'state = "state"\nstore = "features.sqlite"\nbundle = "{toy_bundle}"\nvideos = "videos"\n'
        '[coordinator]\naddress = "h:1"\nca = "c"\ncertificate = "c"\nkey = "k"\n'
        '[groups]\nrule = "folder"\n[labels.alias]\n"laufen" = "run"\n'
    )
    settings = labelling._settings(None, tmp_path / "agent.toml", None)
    assert settings is not None
    found = labelling._suggestions((None, None), settings, settings.videos, ())
    assert found == SuggestionRequest(toy_bundle, tmp_path / "state" / "model.safetensors", settings.store)
    given = labelling._of_settings(settings, settings.videos, found.model)
    assert given["known"] == Known(("run", "jump", "wave"), {"laufen": "run"}, settings.store)
    assert given["rules"].groups.rule == "folder"
    other = labelling._suggestions((None, None), settings, tmp_path, ())  # the store is of another folder
    assert other is not None
    assert other.store is None
    assert labelling._suggestions((None, None), None, videos, ()) is None
