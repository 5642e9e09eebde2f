"""Do the small networks' embeddings mean what they should? A linear probe on the experiments' own world.

Not an experiment of the paper: those run on bundles, federated, with its MLP. This is the quick look
that a training is judged by: PyTorch features, logistic regression on standardised values, whole
groups held out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...export.networks.small import SMALL_FORMS
from ...runtime.keyframes import clip_seeds, draw_keyframe, pick_keyframes
from .clips import Footage

if TYPE_CHECKING:
    from collections.abc import Mapping

Table = npt.NDArray[np.float32]


def probe(features: Mapping[str, Table], footage: Footage, *, trained: int) -> dict[str, dict[str, float]]:
    """Per table of features the accuracy (0 … 1) on class, object and motion of the groups from ``trained`` on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = footage.groups < trained
    told = {
        "class": footage.kinds[:, 0] * 5 + footage.motions,
        "object": footage.kinds[:, 0],
        "motion": footage.motions,
    }
    result: dict[str, dict[str, float]] = {}
    for name, table in features.items():
        result[name] = {}
        for what, truth in told.items():
            line = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
            line.fit(table[seen], truth[seen])
            result[name][what] = float(line.score(table[~seen], truth[~seen]))
    return result


def still_features(model: Any, footage: Footage) -> dict[str, Table]:
    """``blip`` and ``blip-text`` float32 [N, 128] of one still per clip, drawn by seed; caption greedy."""
    from .captioner import embed_frames, prepare_stills, write_captions

    drawn = [draw_keyframe(footage.stills.shape[1], seed) for seed in range(len(footage))]
    pixels = prepare_stills(footage.stills[np.arange(len(footage)), drawn])
    captions = write_captions(model, pixels)
    return {
        "blip": embed_frames(model, pixels, captions),
        "blip-text": embed_frames(model, pixels, captions, image=False),
    }


def film_features(name: str, net: Any, footage: Footage, *, slow: Any, batch: int = 64) -> Table:
    """float32 [N, width] of the keyframes that k-means picks in ``slow``'s stem to res3."""
    from .motion import embed_clips, prepare_films

    picked = np.stack([pick_films(slow, film, SMALL_FORMS[name].frames) for film in footage.films])
    starts = range(0, len(footage), batch)
    return np.concatenate([embed_clips(name, net, prepare_films(picked[at : at + batch])) for at in starts])


def pick_films(slow: Any, film: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """The keyframes uint8 [count, 72, 72, 3] of one clip's candidates uint8 [32, 72, 72, 3]."""
    import torch

    from .motion import prepare_films

    with torch.inference_mode():
        maps = prepare_films(film[None])
        for block in slow.blocks[:3]:
            maps = block(maps)
        features = maps.mean(dim=(3, 4))[0].T.numpy()
    seeds = clip_seeds(0, hashlib.sha256(film.tobytes()).hexdigest())
    return film[pick_keyframes(features, count, seeds.clusters)]
