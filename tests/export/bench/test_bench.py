"""Backends side by side: figures, refusals, and a backend that dies without ending the run."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from flamest.export.bench.child import BenchJob, gpu_used_mb, peak_mb, resident_mb
from flamest.export.bench.comparison import (
    REFERENCE,
    BenchRequest,
    BenchRun,
    _in_order,
    _Measured,
    difference,
    measure_graph,
)
from flamest.export.bench.inputs import FRAMES, pick_clips, render_clips
from flamest.export.bench.process import BackendFailed, BenchProcess
from flamest.export.cli.main import app
from typer.testing import CliRunner


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def figures(tiny_bundle):
    words = ("bench", tiny_bundle, "--repeats", 3, "--clips", 2, "--threads", 1, "--vectors")
    result = run(*words, "--backend", "onnxruntime", "--backend", "tensorrt", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_every_graph_and_every_stage_has_times_and_memory(figures):
    found = figures["backends"]["onnxruntime"]
    assert set(found["graphs"]) == {"vision", "text", "cnn", "keyframes"}
    assert set(found["stages"]) == {"decode", "keyframes", "prepare", "vision", "caption", "embed", "cnn"}
    for row in found["graphs"].values():
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p95_ms"]
        assert row["runs"] == 3
        assert row["where"] == "ONNX Runtime CPU"
    for row in found["stages"].values():
        assert 0 < row["p50_ms"] <= row["p95_ms"]
    sizes = found["graphs"]["text"]["sizes"]
    assert (sizes["batch"], sizes["tokens"], sizes["past"], sizes["patches"]) == (1, 1, 19, 37)
    assert found["clips_per_second"] > 0
    assert found["peak_mb"] > found["graphs"]["text"]["peak_mb"] > 0
    assert found["decoder_peak_mb"] > 0
    assert (figures["clips"], figures["rendered"]) == (2, True)


def test_vectors_of_every_clip_are_in_the_figures_on_request(figures):
    clips = figures["backends"]["onnxruntime"]["vectors"]
    assert len(clips) == 2
    for clip in clips:
        assert clip["token_ids"]
        assert clip["caption"]
        assert len(clip["vlm"]) > 1
        assert len(clip["cnn"]) > 1


def test_a_backend_that_does_not_run_here_is_named_with_the_reason(figures):
    assert "tensorrt" not in figures["backends"]
    refused = figures["refused"]["tensorrt"]
    assert refused["message"]
    assert refused["fix"]


def test_graphs_are_measured_at_the_batch_of_the_pipeline(figures):
    found = figures["backends"]["onnxruntime"]
    batch = found["pipeline"]["batch"]
    assert found["pipeline"]["clips_per_second"] > 0
    for name, row in found["graphs"].items():
        assert list(row["batches"]) == [str(batch)]
        assert row["batch"] == batch
        assert name == "keyframes" or row["sizes"]["batch"] == batch


def test_other_batches_are_measured_on_request(tiny_bundle):
    words = ("--repeats", 3, "--clips", 1, "--threads", 1, "--batch", 2, "--batch", 3, "--backend", "onnxruntime")
    result = run("bench", tiny_bundle, *words, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout.splitlines()[-1])["backends"]["onnxruntime"]["graphs"]["cnn"]["batches"]
    assert {batch: row["sizes"]["batch"] for batch, row in rows.items()} == {"2": 2, "3": 3}


def test_a_bench_that_measured_nothing_fails(tiny_bundle):
    result = run("bench", tiny_bundle, "--clips", 1, "--backend", "tensorrt", "--json")
    assert result.exit_code == 65
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert error["code"] == "nothing_measured"
    assert "tensorrt: " in error["message"]
    assert error["fix"]


def test_an_unknown_backend_is_a_usage_error(tiny_bundle):
    assert run("bench", tiny_bundle, "--backend", "abacus").exit_code == 2


def test_a_backend_that_cannot_open_the_bundle_says_why(tmp_path):
    with pytest.raises(BackendFailed, match="is not a bundle") as caught:
        BenchProcess(BenchJob(str(tmp_path), "onnxruntime"))
    assert caught.value.code == "bad_data"


def test_a_backend_that_dies_is_refused_with_its_signal(tiny_bundle):
    with BenchProcess(BenchJob(str(tiny_bundle), "onnxruntime", threads=1)) as process:
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(BackendFailed, match="signal SIGKILL"):
            process.ask("run_graph")


def test_the_reference_comes_first_and_no_backend_twice():
    assert _in_order(("tensorrt", "openvino", REFERENCE, "tensorrt")) == [REFERENCE, "tensorrt", "openvino"]


def test_a_difference_is_of_the_worst_output_and_row():
    want = {"a": np.array([[1.0, 0.0], [0.0, 2.0]]), "ids": np.array([1, 2])}
    got = {"a": np.array([[1.0, 0.0], [0.5, 2.0]]), "ids": np.array([3, 4])}
    found = difference(got, want)
    assert found["max_rel"] == 0.25
    assert found["min_cosine"] == pytest.approx(2 / np.hypot(0.5, 2))
    assert difference(want, want) == {"max_rel": 0.0, "min_cosine": pytest.approx(1.0)}


def test_rendered_clips_are_real_files_and_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, again = (render_clips(tmp_path / name, 1)[0] for name in ("a", "b"))
    assert first.read_bytes() == again.read_bytes()
    import av

    with av.open(str(first)) as file:
        assert sum(1 for _ in file.decode(video=0)) == FRAMES
    assert pick_clips(tmp_path, 1) == [first]


def test_memory_is_that_of_this_process():
    assert 0 < resident_mb() <= peak_mb()
    assert gpu_used_mb() is None or gpu_used_mb() > 0


def test_a_batch_that_is_too_large_leaves_the_smaller_ones(tmp_path):
    class Process:
        def ask(self, question, *arguments):
            if question == "open_graph":
                if arguments[1] == 128:
                    raise BackendFailed("out of memory", code="GPU_MEMORY", fix="")
                return {"where": "GPU", "precision": "bf16", "sizes": {"batch": arguments[1]}}
            if question == "close_graph":
                np.savez(arguments[0], a=np.zeros(1))
                return {"peak_mb": 1.0, "gpu_mb": None}
            return 2.0

    run = BenchRun.__new__(BenchRun)
    run.refused, run.processes = {}, {"tensorrt": Process()}
    run.measured = {"tensorrt": _Measured(pipeline={"batch": 16})}
    measure_graph(run, "cnn", BenchRequest(tmp_path, repeats=3, batches=(1, 16, 128)), tmp_path)
    row = run.measured["tensorrt"].graphs["cnn"]
    assert row["batch"] == 16
    assert row["batches"]["128"] == {"batch": 128, "problem": "out of memory"}
    assert row["batches"]["1"]["p50_ms"] == 2.0
    assert not run.refused
