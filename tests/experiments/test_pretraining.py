"""The small networks: a training runs, its files load strictly, the committed ones mean something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flamest.base.errors import DataError, InvariantError
from flamest.experiments.miniworld.videos import CLASSES, OBJECTS
from flamest.experiments.pretraining.clips import Footage, film
from flamest.experiments.pretraining.training import measure, plan_training, train_network
from flamest.experiments.pretraining.weights import save_network
from flamest.export.networks.small import SMALL_FORMS, WEIGHTS, load_small, weights_file

BYTES = 12_000_000  # of all committed weights together


@pytest.fixture(scope="module")
def footage() -> Footage:
    """25 freshly rendered clips of a seed that neither training nor experiments use."""
    return film(groups=1, seed=77, processes=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(name: str) -> None:
    if not weights_file(name).is_file():
        pytest.skip(f"'{name}' is not trained")


@pytest.mark.parametrize("name", sorted(SMALL_FORMS))
def test_two_steps_train_and_leave_files_that_load(name: str, footage: Footage, tmp_path: Path) -> None:
    settings, steps = plan_training(name, share=1e-6)
    assert steps <= 2
    few = footage.of_groups([0])
    figures = train_network(name, few, _first(few, 4), settings, folder=tmp_path)
    assert all(np.isfinite(value) for value in figures.values())
    load_small(name, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report[name]["settings"]["seed"] == 0


def test_a_network_with_nan_is_not_written(tmp_path: Path) -> None:
    import torch

    net = torch.nn.Linear(2, 2)
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    with pytest.raises(InvariantError, match="'weight' holds values"):
        save_network("slow", net, tmp_path)
    assert not list(tmp_path.iterdir())


def test_footage_says_what_is_true(footage: Footage) -> None:
    assert len(footage) == len(CLASSES)
    assert footage.films.shape == (25, 32, 72, 72, 3)
    assert footage.stills.shape == (25, 12, 104, 104, 3)
    assert (footage.kinds[:, 0] != footage.kinds[:, 1]).all()
    for clip, captions in enumerate(footage.captions):
        assert len(captions) == 12, clip


def test_tracks_say_where_the_actor_is_in_the_films(footage: Footage) -> None:
    """Actors are vivid, backdrop and distractor are dull: the pixel at the told place is far more coloured."""
    coloured = np.ptp(footage.films.astype(int), axis=-1)  # [N, 32, 72, 72]
    at = (footage.tracks[..., :2] * 72).astype(int)
    solid = footage.kinds[:, 0] != OBJECTS.index("ring")  # which has a hole there
    inside = ((at >= 0) & (at < 72)).all(axis=-1) & solid[:, None]
    clips, frames = np.nonzero(inside)
    told = coloured[clips, frames, at[inside][:, 1], at[inside][:, 0]]
    assert inside[solid].mean() > 0.9
    assert np.mean(told > 80) > 0.95
    assert np.mean(coloured > 80) < 0.2


def test_moments_follow_the_crop_and_the_mirror() -> None:
    from flamest.experiments.pretraining.motion import View
    from flamest.experiments.pretraining.videomae import moments_of

    tracks = np.zeros((2, 4, 3), np.float32)
    tracks[:, :, 0], tracks[:, :, 1], tracks[:, :, 2] = (0.25, 0.5, 0.75, 1.0), 0.5, 0.1
    view = View(np.array([[0, 1, 2, 3], [0, 0, 2, 2]]), (9, 0), 36, np.array([False, True]))
    x, y, radius = np.moveaxis(moments_of(tracks, view, 2), 2, 0)
    assert np.allclose(x, [[0.5, 1.5], [0.75, -0.25]])  # (72 x - 9) / 36; the second clip mirrored
    assert np.allclose(y, 1.0)
    assert np.allclose(radius, 0.2)


def test_an_untrained_network_is_refused_with_the_command_that_trains_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not trained") as caught:
        load_small("slow", tmp_path)
    assert caught.value.code == "untrained"
    assert "flamest.experiments.pretraining slow" in caught.value.fix


def test_committed_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= BYTES


@pytest.mark.parametrize("name", sorted(SMALL_FORMS))
def test_committed_weights_load_and_keep_the_reports_figures(name: str, footage: Footage) -> None:
    trained(name)
    stated = json.loads((WEIGHTS / "report.json").read_text())[name]["held_out"]
    part = _with_stills(footage, 2) if name == "blip" else footage
    found = measure(name, load_small(name), part)
    for figure in ("nouns", "actor", "even"):
        if figure in stated:  # 25 clips against 150: a wide margin, that an untrained network misses by far
            assert found[figure] >= stated[figure] - 0.2, (figure, found, stated)


def test_training_prepares_frames_as_the_exporters_bundles_do(footage: Footage) -> None:
    from flamest.experiments.pretraining.captioner import prepare_stills
    from flamest.experiments.pretraining.motion import prepare_films
    from flamest.export.networks.preprocessing import blip_frames, small_clip_frames, small_video_frames
    from flamest.runtime.video.preprocessing import prepare_frames

    still, film = footage.stills[0], footage.films[0]
    assert small_clip_frames(96) == blip_frames(96)
    assert np.abs(prepare_stills(still).numpy() - prepare_frames(still, blip_frames(96))).mean() < 0.1
    ours = prepare_films(film[None]).numpy()[0].transpose(1, 0, 2, 3)
    assert np.abs(ours - prepare_frames(film, small_video_frames(64))).max() < 1e-4


def _first(footage: Footage, clips: int) -> Footage:
    return Footage(
        footage.films[:clips],
        footage.tracks[:clips],
        footage.stills[:clips],
        footage.captions[:clips],
        footage.places[:clips],
        footage.kinds[:clips],
        footage.motions[:clips],
        footage.groups[:clips],
    )


def _with_stills(footage: Footage, stills: int) -> Footage:
    every = slice(2, None, 12 // stills)
    captions = tuple(clip[every] for clip in footage.captions)
    return Footage(
        footage.films,
        footage.tracks,
        footage.stills[:, every],
        captions,
        footage.places[:, every],
        footage.kinds,
        footage.motions,
        footage.groups,
    )
