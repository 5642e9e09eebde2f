"""verify-weights: known, other and unknown files, and the caption that is compared next time."""

from __future__ import annotations

import json
import re

import pytest
from flamest.base.errors import DataError
from flamest.export.cli.main import app
from flamest.export.weights import verification
from flamest.export.weights.releases import BY_SOURCE, RELEASES, licence_of, licence_warning, pinned_revision
from flamest.export.weights.verification import KnownCaption, caption_verdict, identify_file, network_of
from typer.testing import CliRunner


def run(*words):
    result = CliRunner().invoke(app, ["verify-weights", *map(str, words), "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_every_known_hash_names_its_source():
    for release in RELEASES:
        assert bool(release.sha256) == bool(release.stated_by), release.file
        assert re.fullmatch(r"[0-9a-f]{64}|", release.sha256), release.file
        assert re.fullmatch(r"[0-9a-f]{40}|", release.revision), release.file
    named = BY_SOURCE["r3d_18"]
    assert named.sha256.startswith(named.file.removeprefix("r3d_18-").removesuffix(".pth"))


def test_hub_ids_are_pinned_and_model_zoos_have_no_revision():
    assert pinned_revision("Salesforce/blip-image-captioning-base")
    assert pinned_revision("slow_r50") is None
    assert pinned_revision("someone/else") is None


def test_every_published_source_has_a_release():
    from flamest.export.weights.source import PUBLISHED

    assert {release.source for release in RELEASES} == set(PUBLISHED.values())
    assert all(not licence_of(name).startswith("not known") for name in PUBLISHED.values())


def test_a_hub_id_is_fetched_at_its_pinned_revision_by_default(monkeypatch, tmp_path):
    import huggingface_hub
    from flamest.export.weights.hub import fetch_folder
    from flamest.export.weights.source import parse_source

    (tmp_path / "model.safetensors").touch()
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, *, revision, **_: asked.append(revision) or str(tmp_path)
    )
    for name in ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32@main", "someone/else"):
        fetch_folder(parse_source("clip", name), to_bring="files")
    assert asked == [pinned_revision("openai/clip-vit-base-patch32"), "main", None]


def test_licences_that_forbid_commercial_use_give_a_warning():
    assert "NOT for commercial use" in licence_warning(
        "videomae", licence_of("MCG-NJU/videomae-base-finetuned-kinetics")
    )
    assert "out of scope" in licence_warning("clip", licence_of("openai/clip-vit-base-patch32"))
    assert licence_warning("blip", licence_of("Salesforce/blip-image-captioning-base@main")) == ""


def weights_folder(folder, model_type="blip", name="pytorch_model.bin"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / name).write_bytes(b"not these")
    return folder


def test_another_file_under_the_name_of_a_release_ends_in_65(tmp_path):
    folder = weights_folder(tmp_path / "blip")
    verdict = identify_file(folder / "pytorch_model.bin")
    assert (verdict.verdict, verdict.release.network) == ("differs", "blip")
    code, said = run(folder, "--no-caption")
    assert (code, said["error"]["code"]) == (65, "other_weights")
    assert said["error"]["fix"].startswith("if you trained these weights yourself")


def test_the_hash_of_an_unknown_file_is_printed(tmp_path):
    file = tmp_path / "SLOW_8x8_R50.pyth"
    file.write_bytes(b"slow")
    code, said = run(file)
    assert code == 0
    assert said["files"][0]["verdict"] == "unknown here"
    assert said["files"][0]["release"]["sha256"] is None
    assert said["files"][0]["sha256"] == identify_file(file).sha256
    shown = CliRunner().invoke(app, ["verify-weights", str(file)]).stdout
    assert "unknown here: no public source of its hash was found" in shown


def test_a_known_file_is_known_under_any_name(tmp_path, monkeypatch):
    from dataclasses import replace

    from flamest.base.files import sha256_file

    file = tmp_path / "renamed.bin"
    file.write_bytes(b"blip")
    known = replace(RELEASES[0], sha256=sha256_file(file))
    monkeypatch.setattr(verification, "RELEASES", (known,))
    assert identify_file(file).verdict == "known"
    assert run(file)[1]["files"][0]["release"]["source"] == "Salesforce/blip-image-captioning-base"


def test_a_source_that_is_not_here_is_a_usage_error(tmp_path):
    assert run(tmp_path / "nothing")[0] == 2


def test_the_network_follows_from_the_configuration_or_file_name(tmp_path):
    assert network_of(weights_folder(tmp_path / "a", "clip") / "pytorch_model.bin") == "clip"
    assert network_of(weights_folder(tmp_path / "b", "gpt2") / "pytorch_model.bin") is None
    assert network_of(tmp_path / "r3d_18-b3b3357e.pth") == "resnet3d"


def test_a_recorded_caption_must_be_the_same_next_time(tmp_path, monkeypatch):
    said = KnownCaption("a red ball", (1, 2), "2026-11-25", {"torch": "2"})
    monkeypatch.setattr(verification, "_caption", lambda *_: said)
    weights, record = tmp_path / "w.bin", tmp_path / "known.json"
    weights.write_bytes(b"w")
    assert caption_verdict(tmp_path, weights, record).verdict == "recorded now"
    assert caption_verdict(tmp_path, weights, record).verdict == "the same as recorded"
    monkeypatch.setattr(verification, "_caption", lambda *_: KnownCaption("a dog", (3,), "2026-12-01", {}))
    with pytest.raises(
        DataError, match="the caption of the picture is 'a dog', recorded on 2026-11-25 was 'a red ball'"
    ):
        caption_verdict(tmp_path, weights, record)
    weights.write_bytes(b"others")
    assert caption_verdict(tmp_path, weights, record).verdict == "recorded now"
    assert len(json.loads(record.read_text())) == 2


def test_the_caption_is_the_models_own_of_a_seeded_picture():
    """random:tiny gives the same caption twice."""
    first, again = (verification._caption("random:tiny") for _ in range(2))
    assert first.token_ids == again.token_ids
    assert first.caption
