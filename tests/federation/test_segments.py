"""A federation of silos whose labelled clips are segments of a few long recordings."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from flamest.agent.extraction.store import FeatureStore
from flamest.agent.training.holdout import hold_out_groups
from flamest.experiments.federation import AGENT_HOLD_OUT, FederationSetup, enrol, run_federation
from flamest.experiments.miniworld.videos import ClipKey, render_recording
from flamest.experiments.processes import run_command
from flamest.fedproto.records import TrainSettings
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.packaged import miniworld_bundle
from flamest.runtime.clip_records import Segment, seconds_text

SHOWN = (("ball", "crossing"), ("box", "lifting"), ("star", "circling"))
LABELS = tuple(f"{kind}_{motion}" for kind, motion in SHOWN)
SILOS = {"ward-7": (0, 1, 2), "ward-8": (3, 4, 5)}  # the scenes of their recordings
NEW_SCENE = 6
CLIPS = 2  # of each class in a recording
SEED, ROUNDS = 700, 10


def record(path: Path, scene: int) -> tuple[tuple[str, Segment], ...]:
    """Write a recording of all classes in changing order."""
    keys = [ClipKey(SEED, scene, *what, number) for what in SHOWN for number in range(CLIPS)]
    random.Random(scene).shuffle(keys)
    return render_recording(path, keys)


def record_silo(folder: Path, scenes: tuple[int, ...]) -> None:
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "start_s", "end_s", "label", "camera"))
        for scene in scenes:
            for label, part in record(folder / f"night-{scene}.mp4", scene):
                times = seconds_text(part.start_us), seconds_text(part.end_us)
                rows.writerow((f"night-{scene}.mp4", *times, label, f"camera-{scene}"))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> FederationSetup:
    """Two silos and a coordinator that have run to the end, as processes over mutual TLS."""
    folder = tmp_path_factory.mktemp("federation")
    for silo, scenes in SILOS.items():
        record_silo(folder / silo / "videos", scenes)
    bundle = miniworld_bundle(folder / "bundle")
    manifest = read_manifest(bundle)
    setup = FederationSetup(
        folder,
        tuple(SILOS),
        bundle,
        manifest.fingerprint,
        LABELS,
        manifest.width,
        rounds=ROUNDS,
        train=TrainSettings(batch_size=8, learning_rate=0.003),
        seed=0,
        threads=1,
        deadline_s=240,
        finish_within_s=300,
    )
    enrol(setup)
    history = run_federation(setup, lambda state: None)
    assert [(row["status"], row["accepted"]) for row in history] == [("closed", 2)] * ROUNDS
    return setup


def test_every_segment_is_a_clip_of_its_recordings_group(federation):
    for silo, scenes in SILOS.items():
        with FeatureStore.open(federation.store(silo), read_only=True) as store:
            notes = store.notes()
        assert len(notes) == len({note.sha256 for note in notes}) == len(scenes) * len(LABELS) * CLIPS
        assert {(note.file, note.group, note.camera) for note in notes} == {
            (f"night-{scene}.mp4", f"night-{scene}", f"camera-{scene}") for scene in scenes
        }
        assert all(note.path == f"{note.file}#{note.segment}" for note in notes)


def test_no_recording_is_trained_on_and_held_out(federation):
    for silo in SILOS:
        with FeatureStore.open(federation.store(silo), read_only=True) as store:
            stored = store.read()
        sides = hold_out_groups(stored.groups, AGENT_HOLD_OUT, 0, labels=[label or "" for label in stored.labels])
        files = [{stored.files[row] for row in rows} for rows in sides]
        assert all(files)
        assert not files[0] & files[1]


def test_the_model_names_segments_of_a_new_recording(federation, tmp_path):
    recording = tmp_path / "new.mp4"
    parts = record(recording, NEW_SCENE)
    model = federation.folder / "ward-7" / "state" / "model.safetensors"
    names = [f"{recording}#{part}" for _, part in parts]
    result = run_command("agent", "predict", "--bundle", federation.bundle, "--model", model, *names)
    found = result["predictions"]
    assert {prediction["video"] for prediction in found} == {str(recording)}
    assert [Segment.of_seconds(each["start_s"], each["end_s"]) for each in found] == [part for _, part in parts]
    right = [prediction["labels"][0]["label"] == label for prediction, (label, _) in zip(found, parts, strict=True)]
    assert sum(right) >= 4, found  # of 6; 2 by chance
