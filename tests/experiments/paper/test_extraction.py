"""``extract``: options reach the exporter, other weights build bundles again, incomplete stores are completed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flamest.base.errors import DataError, MissingExtra, SettingsError, UsageError
from flamest.experiments.miniworld.videos import render_dataset
from flamest.experiments.paper import extraction, request
from flamest.experiments.paper.extraction import ExtractionRequest, extract_all, report_file
from flamest.experiments.paper.features import untrained_marker
from flamest.experiments.paper.request import ExperimentRequest, ExtractOptions, extract_features, feature_source
from flamest.experiments.processes import CommandFailed


class Silent:
    def advance(self, steps: int = 1) -> None: ...

    def describe(self, text: str) -> None: ...


class Commands:
    """Stand-ins for the processes: a bundle's fingerprint is the weights that it was made from, a store names it."""

    def __init__(self) -> None:
        self.exports: list[tuple[str, ...]] = []
        self.extractions: list[str] = []
        self.failing: set[str] = set()

    def __call__(self, program: str, *arguments: str | Path, quiet: bool = True) -> dict[str, Any]:
        words = tuple(map(str, arguments))
        pairs = words[1:] if program == "agent" else words
        options = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if program == "export":
            if options["--extractor"] in self.failing:
                raise CommandFailed("flamest-export ended with status 65: no such weights")
            self.exports.append(words)
            decisive = sorted(options.keys() - {"--out", "--backend"})
            made_from = "|".join(f"{key}={options[key]}" for key in decisive)
            bundle = Path(options["--out"])
            bundle.mkdir(parents=True)
            (bundle / "made_from").write_text(made_from)
            return {}
        bundle, store = Path(options["--bundle"]), Path(options["--store"])
        self.extractions.append(store.stem)
        store.write_text((bundle / "made_from").read_text())
        return {"clips": 3, "extracted": 3, "stages_ms": {}}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    pretended = Commands()
    monkeypatch.setattr(extraction, "run_command", pretended)
    monkeypatch.setattr(
        "flamest.runtime.bundle.manifest_reading.read_manifest",
        lambda bundle: SimpleNamespace(fingerprint=(bundle / "made_from").read_text().replace("/", "_"), sources={}),
    )
    return pretended


def ask(folder: Path, *names: str, weights: str = "random:tiny", **more: Any) -> dict[str, Any]:
    return extract_all(ExtractionRequest(folder, folder / "videos", weights, names, **more), Silent())


def test_the_same_request_builds_no_bundle_twice(tmp_path: Path, commands: Commands) -> None:
    ask(tmp_path, "slow", "blip-4frames")
    ask(tmp_path, "slow", "blip-4frames")
    assert len(commands.exports) == 2
    assert commands.extractions == ["slow", "blip-4frames"] * 2  # new clips may have come
    assert "--captioned-frames" in commands.exports[1]


def test_other_weights_build_a_new_bundle_and_keep_the_old_store(tmp_path: Path, commands: Commands) -> None:
    ask(tmp_path, "slow")
    before = (tmp_path / "slow.sqlite").read_text()
    report_file(tmp_path, "slow").write_text("{}")
    ask(tmp_path, "slow", weights="random:full")
    assert "--weights=random:full" in (tmp_path / "slow.sqlite").read_text()
    [old] = tmp_path.glob("slow.*.sqlite")
    assert old.read_text() == before
    assert not (tmp_path / "bundles" / "slow.new").exists()


def test_a_default_accepts_the_existing_bundle(tmp_path: Path, commands: Commands) -> None:
    ask(tmp_path, "slow", weights="random:full")
    ask(tmp_path, "slow", weights="miniworld", chosen=False)
    assert len(commands.exports) == 1


def test_newly_trained_small_networks_build_a_new_bundle(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tmp_path / "slow.safetensors"
    trained.write_bytes(b"first")
    monkeypatch.setattr("flamest.export.networks.small.weights_file", lambda name: trained)
    for content, exports in ((b"first", 1), (b"second", 2), (b"second", 2)):
        trained.write_bytes(content)
        ask(tmp_path, "slow", weights="miniworld", chosen=False)
        assert len(commands.exports) == exports


def test_a_networks_own_source_reaches_only_its_extractors(tmp_path: Path, commands: Commands) -> None:
    ask(tmp_path, "slow", "blip", "i3d", sources={"slow": "weights.safetensors"})
    for words in commands.exports:  # every bundle picks keyframes with Slow's stem: all are made of it
        assert words[words.index("--slow") + 1] == "weights.safetensors"
    ask(tmp_path, "slow", "blip", "i3d", sources={"slow": "weights.safetensors", "i3d": "others.safetensors"})
    assert [words[words.index("--extractor") + 1] for words in commands.exports[3:]] == ["i3d"]


def test_captions_reach_only_clip_and_belong_to_its_bundle(tmp_path: Path, commands: Commands) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text('{"ball": "a ball"}')
    ask(tmp_path, "clip", "slow", captions=captions)
    clip, slow = commands.exports
    assert clip[clip.index("--captions") + 1] == str(captions)
    assert "--captions" not in slow
    ask(tmp_path, "clip", "slow", captions=captions)
    assert len(commands.exports) == 2
    captions.write_text('{"ball": "a red ball"}')
    ask(tmp_path, "clip", "slow", captions=captions)
    assert [words[words.index("--extractor") + 1] for words in commands.exports[2:]] == ["clip"]


def test_the_origin_of_a_bundle_without_record_is_its_manifest(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(tmp_path, "slow")
    (tmp_path / "bundles" / "slow.origin.json").unlink()
    made = {"slow": SimpleNamespace(name="random:tiny")}
    monkeypatch.setattr(
        "flamest.runtime.bundle.manifest_reading.read_manifest",
        lambda bundle: SimpleNamespace(fingerprint="f", sources=made),
    )
    ask(tmp_path, "slow")
    assert len(commands.exports) == 1
    ask(tmp_path, "slow", weights="miniworld")
    assert len(commands.exports) == 2


def test_a_failure_keeps_the_old_bundle_and_the_other_extractors(tmp_path: Path, commands: Commands) -> None:
    ask(tmp_path, "slow", "i3d")
    commands.failing.add("slow")
    done = ask(tmp_path, "slow", "i3d", weights="random:full")
    assert done["slow"]["status"] == "not extracted"
    assert done["i3d"]["clips"] == 3
    assert "random:tiny" in (tmp_path / "bundles" / "slow" / "made_from").read_text()
    assert "random:tiny" in (tmp_path / "slow.sqlite").read_text()


def test_only_incomplete_stores_are_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys((*request.SINGLE, *request.VARIANTS), 4) | {"slow": 3, "blip": 0, "i3d": 0}
    monkeypatch.setattr(request, "find_clips", lambda videos: [None] * 4)
    monkeypatch.setattr(request, "stored_clips", lambda store: counts[store.stem])
    requested: list[ExtractOptions] = []
    monkeypatch.setattr(request, "extract_features", requested.append)
    captions = tmp_path / "captions.json"
    features = tmp_path / "features"
    features.mkdir()
    untrained_marker(features, "i3d").write_text("not trained")
    given = ExperimentRequest(out=tmp_path, dataset="ucf101", videos=tmp_path, captions=captions)
    assert feature_source(given).folder == features
    assert requested == [ExtractOptions(tmp_path, "ucf101", tmp_path, "", ("blip", "slow"), captions)]
    counts.update(slow=4, blip=4)
    feature_source(given)
    assert len(requested) == 1


def test_another_mini_world_is_used_with_a_warning(tmp_path: Path, commands: Commands) -> None:
    render_dataset(tmp_path / "out" / "videos", groups=1, seed=3, objects=("ball",), processes=1)
    done = extract_features(ExtractOptions(tmp_path / "out", weights="random:tiny", names=("slow",)))
    assert "holds 5 clips, the mini-world has 1,600" in done.warnings[0]


def test_real_commands_update_a_store_and_replace_it_for_other_weights(tmp_path: Path) -> None:
    """With the networks themselves: two clips, a third one later, then other weights."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    render_dataset(videos, groups=3, seed=3, objects=("ball",), motions=("lifting",), processes=1)
    table = (videos / "labels.csv").read_text().splitlines()
    (videos / "labels.csv").write_text("\n".join(table[:3]) + "\n")
    options = ExtractOptions(out, videos=videos, weights="random:tiny", names=("slow",))
    assert extract_features(options).reports["slow"]["extracted"] == 2
    (videos / "labels.csv").write_text("\n".join(table) + "\n")
    again = extract_features(options).reports["slow"]
    assert (again["extracted"], again["skipped"]) == (1, 2)
    store = out / "features" / "slow.sqlite"
    assert extraction.stored_clips(store) == 3
    replaced = extract_features(ExtractOptions(out, videos=videos, weights="miniworld", names=("slow",))).reports[
        "slow"
    ]
    assert (replaced["extracted"], extraction.stored_clips(store)) == (3, 3)
    [old] = (out / "features").glob("slow.*.sqlite")
    assert extraction.stored_clips(old) == 3


def test_missing_captions_are_refused_before_rendering(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        extract_features(ExtractOptions(tmp_path / "out", captions=tmp_path / "absent.json"))
    assert not (tmp_path / "out").exists()


def test_without_the_export_packages_nothing_is_rendered_or_run(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(MissingExtra, match="'torch', which is not installed"):
        extract_features(ExtractOptions(tmp_path / "out", weights="miniworld"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "features" / "bundles" / "slow").mkdir(parents=True)  # this one needs no export
    extraction.check_export_packages(tmp_path / "out" / "features", ("slow",))


def test_the_first_command_that_misses_a_package_ends_the_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def fails(*words: Any) -> Any:
        started.append(words)
        failed = CommandFailed("error: this needs transformers\nfix: pip install\nerror: …")
        failed.exit_status, failed.error_code = 78, "missing_extra"
        failed.error_message, failed.error_fix = "this needs transformers", "pip install 'flamest[export]'"
        raise failed

    monkeypatch.setattr(extraction, "run_command", fails)
    with pytest.raises(SettingsError, match=r"^this needs transformers\nfix: [^\n]*$") as raised:
        ask(tmp_path, "slow", "blip")
    assert (raised.value.exit_code, raised.value.fix) == (78, "pip install 'flamest[export]'")
    assert len(started) == 1


def test_a_folder_without_clips_is_named_as_the_cause(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for dataset in ("miniworld", "ucf101"):
        with pytest.raises(DataError, match="videos holds no clips") as raised:
            feature_source(ExperimentRequest(out=tmp_path / "out", dataset=dataset, videos=videos))
        assert "--videos DIR" in raised.value.fix
