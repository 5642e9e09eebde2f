"""KD and ActionCLIP: their formulas by hand, and whole runs on a few tiny clips."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flamest.base.errors import DataError, InvariantError, UsageError
from flamest.experiments.baselines.actionclip import (
    ActionClipRequest,
    actionclip_settings,
    actionclip_steps,
    run_actionclip,
)
from flamest.experiments.baselines.asynchrony import Arrival, mix, mixing_share, schedule_arrivals, versions_needed
from flamest.experiments.baselines.checkpoints import load_checkpoint, save_checkpoint
from flamest.experiments.baselines.clip_towers import build_video_text, load_towers
from flamest.experiments.baselines.clips import FilmShape, film, plan_films
from flamest.experiments.baselines.kd import kd_steps, plan_kd, run_kd
from flamest.experiments.baselines.kd_settings import CentralSettings, KdRequest, KdSettings, kd_settings
from flamest.experiments.baselines.losses import class_scores, class_words, contrastive_loss, distillation_loss
from flamest.experiments.baselines.networks import as_input, build_network, count_parameters
from flamest.experiments.baselines.training import Fit, batches, rate_at

SIDE = 32


class Counting:
    """Progress that counts, and can interrupt as Ctrl-C does."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps, self.stop_after = 0, stop_after

    def advance(self, steps: int = 1) -> None:
        self.steps += steps
        if self.stop_after is not None and self.steps >= self.stop_after:
            raise KeyboardInterrupt

    def describe(self, text: str) -> None:
        pass


def write_clip(path: Path, hue: int, moves: bool, seed: int) -> None:
    """Ten frames: a square of one colour that rests or moves, on noise."""
    import av

    random = np.random.Generator(np.random.PCG64(seed))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            picture = random.integers(0, 60, size=(48, 64, 3), dtype=np.uint8)
            left = 4 + (4 * number if moves else 16)
            picture[16:32, left : left + 16, hue] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(file.getvalue())


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Three classes in six scenes, two clips of each."""
    folder = tmp_path_factory.mktemp("clips")
    lines = ["path,label,group"]
    for label, (hue, moves) in {"red_resting": (0, False), "red_moving": (0, True), "blue_resting": (2, False)}.items():
        for number in range(12):
            name = f"{label}-{number}.mp4"
            write_clip(folder / name, hue, moves, number)
            lines.append(f"{name},{label},scene-{number // 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def tiny_kd(clips: Path, out: Path, **changes: object) -> KdRequest:
    fit = Fit(2, batch_size=6, learning_rate=3e-3, weight_decay=0.0)
    settings = KdSettings(CentralSettings(fit, fit, fit), FilmShape(frames=2, size=SIDE, margin=4))
    federated = dataclasses.replace(settings.federated, silos=2, rounds=2, beta=None, batch_size=4)
    return KdRequest(clips, out, settings=dataclasses.replace(settings, federated=federated), threads=1, **changes)


def tiny_actionclip(clips: Path, out: Path, **changes: object) -> ActionClipRequest:
    settings = actionclip_settings("small", epochs=2)
    shape = dataclasses.replace(settings.film, frames=1, spare=2)
    fit = dataclasses.replace(settings.fit, batch_size=8)
    settings = dataclasses.replace(settings, film=shape, fit=fit, fusion="transformer")
    return ActionClipRequest(clips, out, settings=settings, clip="random", threads=1, **changes)


# The formulas


def test_distillation_loss_is_the_formula_by_hand():
    student, teacher, temperature, alpha = [1.0, -0.5, 0.25], [2.0, 0.0, -1.0], 3.0, 0.7

    def softmax(values):
        powers = [math.exp(value) for value in values]
        return [power / sum(powers) for power in powers]

    hard = -math.log(softmax(student)[2])
    p, q = softmax([v / temperature for v in teacher]), softmax([v / temperature for v in student])
    soft = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    loss = distillation_loss(
        torch.tensor([student], dtype=torch.float64),
        torch.tensor([teacher], dtype=torch.float64),
        torch.tensor([2]),
        temperature=temperature,
        alpha=alpha,
    )
    assert float(loss) == pytest.approx((1 - alpha) * hard + alpha * temperature**2 * soft, rel=1e-12)


def test_mixing_is_the_formula_by_hand_and_counters_are_not_mixed():
    current = {"w": torch.tensor([1.0, 2.0]), "batches": torch.tensor(5)}
    arrived = {"w": torch.tensor([3.0, -2.0]), "batches": torch.tensor(9)}
    mixed = mix(current, arrived, 0.25)
    assert mixed["w"].tolist() == [1.5, 1.0]
    assert int(mixed["batches"]) == 9
    assert current["w"].tolist() == [1.0, 2.0]
    with pytest.raises(InvariantError):
        mix(current, {"w": torch.tensor([3.0])}, 0.25)


def test_a_stale_report_has_a_smaller_share():
    assert mixing_share(0.6, 0, 0.5) == 0.6
    assert mixing_share(0.6, 3, 0.5) == pytest.approx(0.3)
    assert mixing_share(0.6, 3, 0.0) == 0.6


def test_silos_report_when_they_are_done_and_begin_with_the_model_of_that_moment():
    found = schedule_arrivals([10, 100], arrivals=8, epochs=1, slowest=1.0, seed=0)
    assert [one.time for one in found] == sorted(one.time for one in found)
    assert sum(one.silo == 0 for one in found) >= 7  # ten times as quick
    for place, one in enumerate(found):
        before = [number for number in range(place) if found[number].silo == one.silo]
        assert one.base == (before[-1] + 1 if before else 0)
    assert found == schedule_arrivals([10, 100], arrivals=8, epochs=1, slowest=1.0, seed=0)
    assert versions_needed([Arrival(0, 0, 1.0), Arrival(1, 0, 2.0), Arrival(0, 1, 3.0)], 1) == {0, 1}
    with pytest.raises(UsageError):
        schedule_arrivals([10], arrivals=1, epochs=1, slowest=0.5, seed=0)


def test_contrastive_loss_is_the_formula_by_hand():
    random = np.random.Generator(np.random.PCG64(3))
    clips, texts = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in random.normal(size=(2, 4, 5)))
    y = np.array([0, 1, 0, 2])

    def softmax(table):
        powers = np.exp(table)
        return powers / powers.sum(1, keepdims=True)

    target = softmax(10.0 * (y[:, None] == y[None, :]))
    table = 7.0 * clips @ texts.T
    expected = sum((target * np.log(target / softmax(one))).sum() / 4 for one in (table, table.T)) / 2
    loss = contrastive_loss(*map(torch.tensor, (clips, texts, y)), torch.tensor(7.0), sharpness=10.0)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_class_scores_average_the_prompts_probabilities():
    texts = torch.eye(2)[None].repeat(3, 1, 1)
    scores = class_scores(torch.tensor([[1.0, 0.0]]), texts, torch.tensor(2.0))
    assert scores[0, 0].item() == pytest.approx(math.exp(2) / (math.exp(2) + 1))


@pytest.mark.parametrize(
    ("label", "words"),
    [("ApplyLipstick", "apply lipstick"), ("ball_crossing", "ball crossing"), ("YoYo", "yo yo"), ("fall", "fall")],
)
def test_a_label_becomes_words(label, words):
    assert class_words(label) == words


def test_the_rate_rises_and_falls_to_nothing():
    fit = Fit(10, 8, 0.1, 0.0, warmup=0.2)
    assert rate_at(fit, 1.0) == pytest.approx(0.05)
    assert rate_at(fit, 2.0) == pytest.approx(0.1)
    assert rate_at(fit, 10.0) == pytest.approx(0.0)


def test_no_batch_is_of_one_clip():
    for rows in (9, 8, 17, 2):
        parts = list(batches(np.arange(rows), 8, np.random.default_rng(0)))
        assert sorted(np.concatenate(parts)) == list(range(rows))
        assert min(map(len, parts)) >= 2


# The networks


def test_the_students_have_the_parameters_of_table_1():
    with torch.device("meta"):
        assert count_parameters(build_network("student", "full", "2d", 1000, seed=0)) == 11_689_512
        assert count_parameters(build_network("student", "full", "3d", 400, seed=0)) == 33_371_472


@pytest.mark.parametrize(("role", "dimensions"), [("teacher", "2d"), ("assistant", "2d"), ("student", "3d")])
def test_a_network_learns_one_batch_by_heart(role, dimensions):
    net = build_network(role, "small", dimensions, 3, seed=1)
    random = np.random.Generator(np.random.PCG64(0))
    seen = as_input(
        random.integers(0, 256, size=(6, 2, SIDE, SIDE, 3), dtype=np.uint8), 0.45, 0.225, torch.device("cpu")
    )
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(seen), y).backward()
        optimiser.step()
    assert net(seen).argmax(1).tolist() == y.tolist()


def test_actionclip_learns_one_batch_by_heart():
    net = build_video_text(load_towers("random", seed=0), "mean", frames=1, seed=0)
    pixels, y = torch.randn(3, 1, 3, 96, 96, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    sentences = ["a ball", "a box crossing", "the star"]
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(20):
        optimiser.zero_grad()
        contrastive_loss(net.clips(pixels), net.texts(sentences), y, net.scale(), sharpness=10.0).backward()
        optimiser.step()
    assert class_scores(net.clips(pixels), net.texts(sentences)[None], net.scale()).argmax(1).tolist() == y.tolist()


def test_only_the_transformer_sees_the_order_of_frames():
    towers = load_towers("random", seed=0)
    pixels = torch.randn(1, 3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for fusion, sees in (("mean", False), ("transformer", True)):
        net = build_video_text(towers, fusion, frames=3, seed=0).eval()
        with torch.no_grad():
            same = torch.allclose(net.clips(pixels), net.clips(pixels.flip(1)), atol=1e-6)
        assert same is not sees


# The films


def test_films_hold_out_whole_groups_and_leave_damaged_files_out(clips, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in clips.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "red_moving-3.mp4").write_bytes(b"no video at all")
    plan = plan_films(folder, test_share=0.2, seed=0)
    assert not {plan.videos[row].group for row in plan.train} & {plan.videos[row].group for row in plan.test}
    filmed = film(plan, FilmShape(frames=2, size=SIDE, margin=4), Counting())
    assert len(filmed.failed) == 1
    assert "red_moving-3.mp4" in filmed.failed[0]
    assert len(filmed.train) + len(filmed.test) == 35
    still = filmed.films.take(filmed.test[:2], None)
    assert still.shape == (2, 2, SIDE, SIDE, 3)
    assert np.array_equal(still, filmed.films.take(filmed.test[:2], None))
    assert not np.array_equal(still, filmed.films.take(filmed.test[:2], np.random.default_rng(1)))


def test_frames_that_would_not_fit_into_memory_are_refused_before_decoding(clips):
    with pytest.raises(UsageError, match="GB of memory") as caught:
        film(plan_films(clips, test_share=0.2, seed=0), FilmShape(frames=4096, size=4096), Counting())
    assert "--size" in caught.value.fix


# Whole runs


def test_kd_gives_a_result_file_and_goes_on_where_it_was_interrupted(clips, tmp_path):
    request = tiny_kd(clips, tmp_path / "whole")
    plan = plan_kd(request)
    rows = [*plan.centre_rows, *plan.clips.test, *(row for silo in plan.silo_rows for row in silo)]
    assert sorted(rows) == list(range(len(plan.clips.videos)))
    progress = Counting()
    whole = run_kd(request, progress)
    assert progress.steps == kd_steps(request)
    written = json.loads((tmp_path / "whole" / "kd.json").read_text())
    assert written["curve"] == list(whole.curve)
    assert {"best", "last", "seconds_train", "seconds_test", "trainable_parameters", "train_curve"} <= written.keys()
    assert len(whole.curve) == len(whole.train_curve) == 2
    assert whole.details["clips"]["centre"] == len(plan.centre_rows)

    again = tiny_kd(clips, tmp_path / "stopped")
    for stop in (60, kd_steps(request) - 5):  # while the teacher learns; in the last round
        with pytest.raises(KeyboardInterrupt):
            run_kd(again, Counting(stop))
    resumed = run_kd(again, Counting())
    assert resumed.curve == whole.curve
    assert resumed.train_curve == whole.train_curve
    for first in (tmp_path / "whole" / "checkpoints").rglob("*.safetensors"):
        second = tmp_path / "stopped" / first.relative_to(tmp_path / "whole")
        ours, theirs = load_checkpoint(first), load_checkpoint(second)
        assert ours is not None
        assert theirs is not None
        assert all(torch.equal(tensor, theirs[0][name]) for name, tensor in ours[0].items())


def test_the_centre_may_have_clips_of_other_classes(clips, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for label, hue in (("green", 1), ("blue", 2)):
        (other / label).mkdir()
        for number in range(3):
            write_clip(other / label / f"{number}.mp4", hue, False, number)
    request = tiny_kd(clips, tmp_path / "out", central=other)
    result = run_kd(request, Counting())
    assert result.details["clips"]["centre"] == 6
    assert result.details["central"]["teacher"]["test_curve"] == []
    assert result.trainable_parameters == count_parameters(build_network("student", "small", "2d", 3, seed=0))


def test_actionclip_gives_a_result_file_and_goes_on_where_it_was_interrupted(clips, tmp_path):
    request = tiny_actionclip(clips, tmp_path / "whole")
    progress = Counting()
    whole = run_actionclip(request, progress)
    assert progress.steps == actionclip_steps(request)
    written = json.loads((tmp_path / "whole" / "actionclip.json").read_text())
    assert written["details"]["initial_weights"].startswith("random")
    assert written["curve"] == list(whole.curve)
    again = tiny_actionclip(clips, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run_actionclip(again, Counting(actionclip_steps(request) - 5))
    resumed = run_actionclip(again, Counting())
    assert resumed.curve == whole.curve
    assert resumed.train_curve == whole.train_curve


def test_actionclip_at_full_scale_reads_a_published_folder_and_nothing_else(clips, tmp_path):
    from flamest.export.networks.small import build_small_clip
    from flamest.export.weights.tokenizer import small_tokenizer

    request = tiny_actionclip(clips, tmp_path / "out", scale="full")
    with pytest.raises(UsageError, match="published CLIP"):
        run_actionclip(request, Counting())
    folder = tmp_path / "clip"
    with pytest.raises(UsageError, match=r"config\.json"):
        run_actionclip(dataclasses.replace(request, clip=str(folder)), Counting())
    build_small_clip().save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(small_tokenizer())
    towers = load_towers(str(folder), seed=0)
    assert towers.image_size == 96
    assert build_video_text(towers, "mean", frames=1, seed=0).texts(["a ball", "the red box"]).shape == (2, 128)


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, {"w": torch.ones(3)}, {"epochs": 1})
    assert load_checkpoint(path) is not None
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError) as caught:
        load_checkpoint(path)
    assert "rm " in caught.value.fix


@pytest.mark.parametrize("make", [kd_settings, actionclip_settings])
def test_no_epochs_are_refused(make):
    with pytest.raises(UsageError):
        make("small", epochs=0)
