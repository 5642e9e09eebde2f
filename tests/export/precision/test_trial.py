"""int8 that finds its way under the limit: a network with one bad layer, and the rules of the choice."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.export import part_export
from flamest.export.bundle import ExportRequest, export_bundle, steps_of
from flamest.export.networks.extractors import EXTRACTORS
from flamest.export.precision import draft as drafts
from flamest.export.precision import trial
from flamest.export.precision.choice import choose_precision
from flamest.export.precision.selection import STEPS, kept_products
from flamest.export.precision.trial import TARGET, write_int8
from flamest.export.weights.source import parse_source
from flamest.runtime.bundle.limits import COSINES
from flamest.runtime.bundle.manifest_reading import read_manifest

from .conftest import BAD, LAYERS, outlier_model, rows


class Steps:
    """Progress that counts."""

    steps = 0

    def advance(self, steps=1):
        self.steps += steps

    def describe(self, text):
        pass


def no_chain(graphs):
    return 1.0


def settle(draft, folder, chain=no_chain, tell=lambda share: None):
    folder.mkdir(exist_ok=True)
    return write_int8({"g": draft}, {}, folder, chain, 1, tell)["g"]


@pytest.mark.parametrize("static", [True, False])
def test_a_bad_layer_stays_wide_and_the_rest_is_int8(outlier, tmp_path, static):
    draft = outlier(static=static)
    plain = draft.write(0, tmp_path)
    assert plain.int8.kept == ()
    graph = settle(draft, tmp_path / "out")
    if static:
        from flamest.runtime.backends.onnxruntime_cpu import open_session

        assert draft.smallest_cosine(open_session(tmp_path / plain.file, threads=1)) < COSINES["int8"]
        assert graph.int8.kept == (f"product{BAD}",)
        assert graph.int8.share == pytest.approx((LAYERS - 1) / LAYERS, abs=1e-3)
    assert graph.int8.share >= 0.9
    assert graph.int8.held_out_cosine >= TARGET
    assert graph.int8.held_out_clips == 4
    assert graph.precision == "int8"


def test_two_trials_write_the_same_bytes(outlier, tmp_path):
    files = []
    for name in ("one", "two"):
        graph = settle(outlier(), tmp_path / name)
        files.append((tmp_path / name / graph.file).read_bytes())
    assert files[0] == files[1]


def test_a_chain_that_misses_the_target_keeps_more(outlier, tmp_path):
    seen = []

    def chain(graphs):
        seen.append(graphs["g"].int8.share)
        return 0.9985 if len(seen) < len(STEPS) else 0.9995

    graph = settle(outlier(), tmp_path / "out", chain)
    assert len(seen) == len(STEPS)
    assert seen[0] == 1.0
    assert 0.9 <= seen[-1] < 1.0
    assert graph.int8.held_out_cosine >= TARGET


def test_where_no_step_reaches_the_target_the_best_is_written(draft_of, tmp_path):
    figures = iter([0.99, 0.9985, 0.98, 0.97])
    graph = settle(draft_of(outlier_model(loud=1.0)), tmp_path / "out", lambda graphs: next(figures))
    assert graph.int8.held_out_cosine == 0.9985


def test_cosines_that_differ_by_a_hair_keep_the_same_products():
    random = np.random.default_rng(0)
    order = [f"p{index}" for index in range(40)]
    work = dict.fromkeys(order, 100)
    costs = {name: float(10.0 ** -random.integers(3, 8)) for name in order}
    other = {name: cost * (1 + 1e-3 * random.uniform(-1, 1)) for name, cost in costs.items()}
    for share in STEPS:
        kept = kept_products(share, order, work, costs)
        assert kept == kept_products(share, order, work, other)
        assert sum(work[name] for name in kept) <= share * sum(work.values())


def test_a_cost_at_an_edge_of_rounding_can_change_the_choice():
    order, work = ["a", "b", "c"], {"a": 10, "b": 10, "c": 180}
    middle = {"a": 1.00e-4, "b": 1.02e-4, "c": 1.0e-3}
    assert kept_products(0.06, order, work, middle) == ("a",), "both are 1.0e-5 for a multiply-add: the first of them"
    edge = middle | {"b": 1.0501e-4}
    assert kept_products(0.06, order, work, edge) == ("b",)
    assert kept_products(0.06, order, work, edge | {"b": 1.0499e-4}) == ("a",)


def test_products_that_are_never_int8_count_to_the_share():
    order = ["a", "b", "c"]
    work = {"first": 50, "a": 50, "b": 50, "c": 850}
    costs = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert kept_products(0.06, order, work, costs) == ()
    assert kept_products(0.10, order, work, costs) == ("b",)


def test_progress_moves_while_calibrating_and_measuring(outlier, tmp_path):
    observed, measured = [], []
    draft = outlier(tell=observed.append)
    assert observed == [index / len(rows(1)) for index in range(1, len(rows(1)) + 1)]
    settle(draft, tmp_path / "out", tell=measured.append)
    assert measured == [index / LAYERS for index in range(1, LAYERS + 1)], "once, although it is written again"
    assert len(observed) == len(rows(1)), "calibration has ended"


def test_drafts_that_are_measured_together_share_one_progress(outlier, draft_of, tmp_path):
    drafts, shares = {"a": outlier(), "b": outlier()}, []
    (tmp_path / "out").mkdir()
    write_int8(drafts, {}, tmp_path / "out", no_chain, 1, shares.append)
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (2 * LAYERS, 1.0)


def test_calibration_that_takes_too_long_ends_after_its_least_feeds(outlier):
    now = iter(range(0, 10**9, 1000))
    draft = outlier(clock=lambda: float(next(now)))
    assert draft.unseen == len(rows(1)) - drafts.LEAST_FEEDS
    (said,) = draft.notes
    assert said.startswith("g: calibration ended after 10 minutes, with 8 of 12 inputs; its int8 scales and biases")
    assert outlier().notes == ()


def test_an_int8_export_counts_the_steps_that_it_announces(tmp_path, silent):
    entry = EXTRACTORS["slow"]
    choice = choose_precision(("int8",), entry, "onnx")
    sources = {"slow": parse_source("slow", "random:tiny")}
    export_bundle(ExportRequest(entry, sources, tmp_path / "b", precision=choice, threads=1), silent)
    assert silent.steps == steps_of(entry, choice)


@pytest.fixture(scope="module")
def pressed(tmp_path_factory):
    """An export on a slow machine whose int8 reaches no target: its notes, its steps, and those before the last."""
    entry, progress, before = EXTRACTORS["slow"], Steps(), []
    choice = choose_precision(("int8",), entry, "onnx")
    sources, out = {"slow": parse_source("slow", "random:tiny")}, tmp_path_factory.mktemp("pressed") / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "TARGET", 2.0)
        patch.setattr(drafts, "CALIBRATION_S", -1.0)
        patch.setattr(drafts, "LEAST_FEEDS", 3)
        patch.setattr(part_export, "write_int8", lambda *given: (write_int8(*given), before.append(progress.steps))[0])
        export_bundle(ExportRequest(entry, sources, out, precision=choice, threads=1), progress)
    return read_manifest(out), progress.steps, before, steps_of(entry, choice)


def test_an_export_that_measures_products_moves_as_announced(pressed):
    _, steps, before, announced = pressed
    assert steps == announced
    assert before == [announced - 1], "all but the comparison with PyTorch"


def test_the_manifest_says_where_a_clock_ended_calibration(pressed):
    (said,) = [text for text in pressed[0].notes if text.startswith("cnn: calibration ended")]
    assert "with 3 of 8 inputs; its int8 scales and biases depend on this machine's speed" in said
