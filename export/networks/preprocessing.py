"""Preprocessing of frames as each network's publishers do it, as the rule that the runtime follows."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ...base.errors import DataError
from ...base.files import read_regular
from ...runtime.bundle.manifest import FramePreprocessing

MAX_CONFIG = 1 << 20  # bytes of preprocessor_config.json
Triple = tuple[float, float, float]

# BlipImageProcessor of the published captioner, and CLIP's own (https://github.com/openai/CLIP).
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
# PyTorchVideo's hub pages for slow_r50 and i3d_r50.
PYTORCHVIDEO_MEAN: Triple = (0.45, 0.45, 0.45)
PYTORCHVIDEO_STD: Triple = (0.225, 0.225, 0.225)
# R3D_18_Weights.KINETICS400_V1.transforms() of torchvision: to 128 x 171 whatever the aspect, 112 in the middle.
KINETICS_MEAN: Triple = (0.43216, 0.394666, 0.37645)
KINETICS_STD: Triple = (0.22803, 0.22145, 0.216989)
R3D_CROP, R3D_RESIZED = 112, (128, 171)
# VideoMAEImageProcessor of the published classifier.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_RESAMPLE = {"bicubic": 3, "bilinear-pillow": 2}  # as preprocessor_config.json numbers Pillow's filters


def blip_frames(size: int) -> FramePreprocessing:
    return FramePreprocessing(size=size, fit="stretch", filter="bicubic", mean=CLIP_MEAN, std=CLIP_STD)


def clip_frames(size: int) -> FramePreprocessing:
    return FramePreprocessing(size=size, fit="crop", filter="bicubic", mean=CLIP_MEAN, std=CLIP_STD)


def keyframe_candidates(size: int) -> FramePreprocessing:
    """Frames among which keyframes are picked: as Slow's, but never rounded to whole bytes, which would pick others
    (docs/decisions/033-fractions-for-keyframes.md)."""
    return FramePreprocessing(size=size, fit="crop", filter="bilinear", mean=PYTORCHVIDEO_MEAN, std=PYTORCHVIDEO_STD)


def pytorchvideo_frames(size: int) -> FramePreprocessing:
    """Slow and I3D. PyTorchVideo's own scaler gives fractions; as bytes they are rounded
    (docs/decisions/033-fractions-for-keyframes.md)."""
    return FramePreprocessing(
        size=size, fit="crop", filter="bilinear-bytes", mean=PYTORCHVIDEO_MEAN, std=PYTORCHVIDEO_STD
    )


def resnet3d_frames(size: int) -> FramePreprocessing:
    """The published sizes for 112 px, others in proportion."""
    height, width = (round(side * size / R3D_CROP) for side in R3D_RESIZED)
    return FramePreprocessing(
        size=size,
        fit="crop",
        filter="bilinear-bytes",
        mean=KINETICS_MEAN,
        std=KINETICS_STD,
        resized=(height, width),
    )


def videomae_frames(size: int) -> FramePreprocessing:
    return FramePreprocessing(size=size, fit="crop", filter="bilinear-pillow", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def small_video_frames(size: int) -> FramePreprocessing:
    """All four spatio-temporal networks of the mini-world, as flamest.experiments.pretraining trains them."""
    return pytorchvideo_frames(size)


def small_clip_frames(size: int) -> FramePreprocessing:
    """The mini-world's CLIP sees the same whole frames as its BLIP."""
    return blip_frames(size)


def check_preprocessor(path: Path, rule: FramePreprocessing) -> None:
    """Raise DataError when ``preprocessor_config.json`` at ``path`` exists and contradicts ``rule``."""
    if not os.path.lexists(path):
        return
    try:
        config = json.loads(read_regular(path, largest=MAX_CONFIG))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", fix="download the folder again") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} holds no JSON object", fix="download the folder again")
    for key, expected in (
        ("image_mean", rule.mean),
        ("image_std", rule.std),
        ("resample", _RESAMPLE[rule.filter]),
        ("do_center_crop", rule.fit == "crop"),
    ):
        found = config.get(key, expected)
        if (tuple(found) if isinstance(found, list) else found) != expected:
            raise DataError(
                f"{path}: {key} is {found}, expected {expected} as published with this model",
                fix="use the file as published, or remove it: the published numbers are used then",
            )
