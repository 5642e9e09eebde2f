"""A linear probe of the small networks' embeddings on the experiments' own world.

Not an experiment of the paper: those run on bundles, federated, with its MLP. This is a quick check of a
training: PyTorch features, logistic regression on standardised values, whole groups held out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...export.networks.small import SMALL_FORMS
from ...runtime.keyframes import clip_seeds, draw_keyframe, pick_keyframes
from .clips import TrainingClips

if TYPE_CHECKING:
    from collections.abc import Mapping

Table = npt.NDArray[np.float32]


def probe(features: Mapping[str, Table], clips: TrainingClips, *, trained: int) -> dict[str, dict[str, float]]:
    """Accuracy (0 … 1) on class, object and motion per table of features, tested on groups from ``trained`` on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = clips.groups < trained
    targets = {
        "class": clips.kinds[:, 0] * 5 + clips.motions,
        "object": clips.kinds[:, 0],
        "motion": clips.motions,
    }
    result: dict[str, dict[str, float]] = {}
    for name, table in features.items():
        result[name] = {}
        for target, truth in targets.items():
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
            classifier.fit(table[fitted], truth[fitted])
            result[name][target] = float(classifier.score(table[~fitted], truth[~fitted]))
    return result


def still_features(model: Any, clips: TrainingClips) -> dict[str, Table]:
    """Embeddings ``blip`` and ``blip-text`` float32 [N, 128] of one seeded still per clip, with greedy captions."""
    from .captioner import embed_frames, write_captions
    from .stills import prepare_stills

    drawn = [draw_keyframe(clips.stills.shape[1], seed) for seed in range(len(clips))]
    pixels = prepare_stills(clips.stills[np.arange(len(clips)), drawn])
    captions = write_captions(model, pixels)
    return {
        "blip": embed_frames(model, pixels, captions),
        "blip-text": embed_frames(model, pixels, captions, image=False),
    }


def video_features(name: str, net: Any, clips: TrainingClips, *, slow: Any, batch: int = 64) -> Table:
    """Embeddings float32 [N, width] of the keyframes that k-means picks on ``slow``'s features (stem to res3)."""
    from .motion import embed_clips, prepare_clips

    picked = np.stack([pick_frames(slow, video, SMALL_FORMS[name].frames) for video in clips.videos])
    starts = range(0, len(clips), batch)
    return np.concatenate([embed_clips(name, net, prepare_clips(picked[at : at + batch])) for at in starts])


def pick_frames(slow: Any, video: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """The keyframes uint8 [count, 72, 72, 3] of one clip's candidates uint8 [32, 72, 72, 3]."""
    import torch

    from .motion import prepare_clips

    with torch.inference_mode():
        maps = prepare_clips(video[None])
        for block in slow.blocks[:3]:
            maps = block(maps)
        features = maps.mean(dim=(3, 4))[0].T.numpy()
    seeds = clip_seeds(0, hashlib.sha256(video.tobytes()).hexdigest())
    return video[pick_keyframes(features, count, seeds.clusters)]
