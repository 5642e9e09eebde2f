"""Whole bundles of lower precision, of the mini-world's trained networks."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
from flamest.base.errors import DataError, StorageError
from flamest.export.cli.main import app
from flamest.export.parity.chain import ChainPart, sum_up
from flamest.export.parity.verification import verify_bundle
from flamest.export.precision.calibration import (
    CALIBRATION_SEED,
    FEW_SEEDED_CLIPS,
    HELD_OUT_SEED,
    CalibrationClips,
    calibration_sets,
    folder_clips,
    seeded_clips,
)
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.bundle.limits import COSINES
from flamest.runtime.bundle.manifest import FramePreprocessing, encode_manifest
from flamest.runtime.bundle.manifest_reading import read_manifest
from typer.testing import CliRunner

WORDS = ("--backend", "onnx", "--weights", "miniworld", "--threads", "1", "--json")


def export(out, *words):
    result = CliRunner().invoke(app, [*WORDS, *words, "--out", str(out)])
    return result, json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "bundle"
    result, said = export(out, "--precision", "int8")
    assert result.exit_code == 0, said
    return out, said


def test_an_int8_bundle_records_its_dtypes_and_cosines(int8):
    out, said = int8
    manifest = read_manifest(out)
    assert said["precision"] == manifest.precision == "int8"
    histograms = {name: graph.dtype_histogram for name, graph in manifest.graphs.items()}
    assert set(histograms["vision"]) == {"float32", "int8"}
    assert histograms["vision"]["int8"]["MatMul"] == 4 * 4 + 2 * 3  # of each layer, and of the text's keys and values
    assert {"LayerNormalization", "Softmax"} <= set(histograms["vision"]["float32"])
    assert set(histograms["text"]) == {"float32", "float32 with int8 weights"}
    assert "Conv" not in histograms["cnn"].get("float32", {})  # the first is a sixth of so small a network
    for name in ("vision", "text", "cnn"):
        figures = manifest.graphs[name].int8
        assert figures.share >= 0.9
        assert figures.held_out_cosine >= 0.999
        assert figures.held_out_clips == 4
    assert manifest.graphs["keyframes"].int8 is None
    assert said["int8_share"] >= 0.9
    assert manifest.graphs["keyframes"].precision == "fp32"
    assert set(histograms["keyframes"]) == {"float32"}
    chain = manifest.parity.chain
    assert set(chain.embeddings) == {"vlm", "cnn"}
    assert all(COSINES["int8"] <= cosine.smallest <= cosine.mean <= 1 for cosine in chain.embeddings.values())
    assert chain.captions_equal == chain.captions == chain.clips == manifest.calibration.clips == 8
    assert manifest.calibration.source == "seeded"


def test_precision_does_not_change_the_fingerprint(int8, tmp_path):
    manifest = read_manifest(int8[0])
    graphs = {name: msgspec.structs.replace(graph, precision="fp32") for name, graph in manifest.graphs.items()}
    assert msgspec.structs.replace(manifest, graphs=graphs, calibration=None).fingerprint == manifest.fingerprint


def test_inspect_shows_dtypes_calibration_and_the_whole_chain(int8):
    shown = CliRunner().invoke(app, ["inspect", str(int8[0])]).stdout
    assert "float32 with int8 weights: " in shown
    assert "calibration   8 clips, seeded" in shown
    assert "whole chain, vlm with the fp32 caption: cosine to fp32 at least 0.99" in shown
    assert "8 of 8 equal to fp32's" in shown
    assert "of the multiply-adds with a weight" in shown
    assert "cosine to fp32 at least 0.99" in shown
    assert "on 4 clips that were held out" in shown


@pytest.mark.parametrize("name", ["vision", "text", "cnn"])
def test_a_clip_does_not_depend_on_its_neighbours_in_an_int8_batch(int8, name):
    manifest = read_manifest(int8[0])
    graph, generator = manifest.graphs[name], np.random.default_rng(0)
    sizes = {word: axis.usual for word, axis in graph.axes.items()} | {"batch": 3}

    def size(word):
        return word if isinstance(word, int) else sum(sizes[part.strip()] for part in word.split("+"))

    feeds = {}
    for tensor in graph.inputs:
        shape = [size(word) for word in tensor.shape]
        if tensor.dtype in ("int64", "uint8"):
            feeds[tensor.name] = generator.integers(0, 20, shape, dtype=tensor.dtype)
        else:
            feeds[tensor.name] = generator.standard_normal(shape, dtype=np.float32)
            feeds[tensor.name][1:] *= 20  # loud neighbours
    session = open_session(int8[0] / graph.file, threads=1)
    together = session.run(feeds)
    alone = session.run({key: value[:1] for key, value in feeds.items()})
    for output, values in alone.items():
        np.testing.assert_allclose(together[output][:1], values, rtol=1e-5, atol=1e-5, err_msg=output)


def test_verify_compares_an_int8_bundle_with_its_whole_chain(int8, silent):
    done = verify_bundle(int8[0], silent, threads=1)
    assert done.parity.chain.embeddings.keys() == {"vlm", "cnn"}
    assert done.parity.captions == 4
    assert done.parity.graphs["vision"].min_cosine >= COSINES["int8"]


def test_verify_refuses_an_int8_bundle_that_claims_to_be_fp32(int8, tmp_path, silent):
    folder = tmp_path / "claims"
    shutil.copytree(int8[0], folder)
    manifest = read_manifest(folder)
    graphs = manifest.graphs | {"cnn": msgspec.structs.replace(manifest.graphs["cnn"], precision="fp32")}
    (folder / "bundle.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, graphs=graphs)))
    with pytest.raises(DataError, match="graph 'cnn', output embedding") as refused:
        verify_bundle(folder, silent, threads=1)
    assert refused.value.code == "parity_failed"


def test_an_embedding_too_far_from_fp32_leaves_no_bundle(tmp_path, monkeypatch):
    from flamest.export.parity import chain

    monkeypatch.setattr(chain, "COSINES", dict(COSINES) | {"fp16": 1.1})
    result, said = export(tmp_path / "out" / "bundle", "--extractor", "slow", "--precision", "fp16")
    assert result.exit_code == 65
    assert said["error"]["code"] == "parity_failed"
    assert "embedding 'cnn'" in said["error"]["message"]
    assert "--precision GRAPH=fp32" in said["error"]["fix"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_chain_with_values_that_are_not_finite_fails():
    with pytest.raises(DataError, match="cosine nan to fp32"):
        sum_up([ChainPart("vlm", ("fp16", "fp32"), np.array([1.0, np.nan]), ("x",))])
    assert sum_up([]) is None


def test_own_clips_are_decoded_and_counted(tmp_path, clips):
    from flamest.runtime.bundle.manifest import FramePreprocessing

    rule = FramePreprocessing(size=32, fit="crop", filter="bilinear-bytes", mean=(0.45,) * 3, std=(0.225,) * 3)
    for number in range(2):
        clips.write_clip(tmp_path / "deeper" / f"{number}.mp4")
    clips = folder_clips(tmp_path)
    read = list(clips.read(rule, 4))
    assert (clips.source, clips.clips, len(read)) == ("own clips", 2, 2)
    assert {(frames.shape, frames.dtype.name) for frames in read} == {((4, 32, 32, 3), "uint8")}
    assert [frames.shape for frames in seeded_clips(0, clips=1).read(rule, 4)] == [(4, 32, 32, 3)]


def test_a_calibration_folder_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(StorageError, match="no such folder"):
        folder_clips(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(DataError, match="no videos in it"):
        folder_clips(tmp_path)


RULE = FramePreprocessing(size=8, fit="crop", filter="bilinear-bytes", mean=(0.0,) * 3, std=(1.0,) * 3)


def frames_of(clips: CalibrationClips) -> list[bytes]:
    return [rgb.tobytes() for rgb in clips.read(RULE, 2)]


@pytest.mark.parametrize(("own", "calibrated", "judging"), [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 3, 1), (9, 7, 2)])
def test_clips_that_judge_int8_are_never_calibrated_on(own, calibrated, judging):
    folder = seeded_clips(5, own)
    sets = calibration_sets(CalibrationClips("own clips", own, folder.read))
    seen, judges = frames_of(sets.calibration), frames_of(sets.held_out)
    assert not set(seen) & set(judges)
    assert (len(seen), sets.calibration.clips) == (calibrated + FEW_SEEDED_CLIPS, calibrated)
    assert len(judges) == sets.held_out.clips == judging + FEW_SEEDED_CLIPS, "what judged is counted"
    mine = frames_of(folder)
    assert seen == [mine[at] for at in range(own) if own < 4 or at % 4 != 3] + frames_of(
        seeded_clips(CALIBRATION_SEED, FEW_SEEDED_CLIPS)
    )
    assert judges == mine[3::4] + frames_of(seeded_clips(HELD_OUT_SEED, FEW_SEEDED_CLIPS))
