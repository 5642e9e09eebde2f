"""ActionCLIP, the paper's centralised baseline (Wang et al. 2021): CLIP fine-tuned on clips and their labels' words.

https://arxiv.org/abs/2109.08472, with the settings of the authors' code. docs/explanation/baselines.md lists which
choices are theirs and which are ours. Every parameter of CLIP is trained, on all clips in one place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...base.errors import DataError, UsageError
from ...base.progress import Progress
from ...export.networks.preprocessing import CLIP_MEAN, CLIP_STD
from ...export.networks.small import SMALL_FORMS, weights_file
from .checkpoints import run_key
from .clip_towers import ClipTowers, Fusion, build_video_text, load_towers
from .clips import Bytes, ClipShape, ClipSplit, DecodedClips, Rows, decode_clips, split_clips
from .losses import PROMPTS, TARGET_SHARPNESS, class_scores, class_sentences, contrastive_loss
from .networks import Scale, as_input, count_parameters
from .result import BaselineResult, Device, best_and_last, settings_record, torch_on, training_machine, write_result
from .training import Fit, TrainJob, accuracy, train

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ActionClipSettings:
    """Settings of a fine-tuning."""

    fit: Fit
    shape: ClipShape
    fusion: Fusion = "mean"
    prompts: tuple[str, ...] = PROMPTS
    sharpness: float = TARGET_SHARPNESS
    test_share: float = 0.2


@dataclass(frozen=True)
class ActionClipRequest:
    """Clips, CLIP model and settings of a run.

    ``clip``: miniworld, random, or a local folder of a CLIP model; "" takes the mini-world's if it is trained.
    """

    videos: Path
    out: Path
    scale: Scale = "small"
    settings: ActionClipSettings = field(default_factory=lambda: actionclip_settings("small"))
    clip: str = ""
    dataset: str = ""  # name in the result; the folder's name by default
    seed: int = 0
    threads: int = 2
    device: Device = "auto"


def actionclip_settings(scale: Scale, *, epochs: int | None = None) -> ActionClipSettings:
    """The defaults of a scale. Raises UsageError on ``epochs`` below 1."""
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs {epochs}: expected 1 or more", fix="--epochs 10")
    if scale == "full":  # the authors' optimiser, rate, decay, batch and warm-up; 80 epochs as the paper says
        fit = Fit(epochs or 80, 64, 5e-6, weight_decay=0.2, betas=(0.9, 0.98), warmup=0.1)
        return ActionClipSettings(fit, ClipShape(frames=8, size=224, spare=1, margin=0, filter="bicubic"))
    fit = Fit(epochs or 12, 16, 5e-4, weight_decay=0.05, betas=(0.9, 0.98))
    size = SMALL_FORMS["clip"].crop
    return ActionClipSettings(fit, ClipShape(frames=4, size=size, fit="stretch", filter="bicubic"))


def actionclip_steps(request: ActionClipRequest) -> int:
    """Steps of ``run_actionclip``'s progress: clips decoded, and clips trained on in every epoch."""
    split = split_clips(request.videos, test_share=request.settings.test_share, seed=request.seed)
    return len(split.videos) + request.settings.fit.epochs * len(split.train)


def run_actionclip(request: ActionClipRequest, progress: Progress) -> BaselineResult:
    """Fine-tune and test after every epoch; writes ``request.out``/actionclip.json and returns its content.

    Resumes from the checkpoint of the same run under ``request.out``/checkpoints. ``progress`` advances by
    one per clip, ``actionclip_steps`` in all. Raises DataError, StorageError, UsageError,
    MissingExtra, SettingsError as its parts do.
    """
    settings = request.settings
    split = split_clips(request.videos, test_share=settings.test_share, seed=request.seed)
    source = _source(request)
    towers = load_towers(source, seed=request.seed)
    if towers.image_size != settings.shape.size:
        raise UsageError(
            f"this CLIP reads frames of {towers.image_size} pixels, got --size {settings.shape.size}",
            fix=f"--size {towers.image_size}",
        )
    with torch_on(request.device, request.threads) as device:
        progress.describe("decoding the clips")
        decoded = decode_clips(split, settings.shape, progress)
        fine_tuning = _FineTuning(request, towers, decoded, device)
        progress.describe("fine-tuning CLIP")
        before_training = fine_tuning.test()
        history = train(fine_tuning.job(request, _run_key(request, split, source, towers)), progress)
        started = time.monotonic()
        fine_tuning.test()
        seconds_test = time.monotonic() - started
        machine = training_machine(device, request.threads)
    best, last = best_and_last(history.test_curve)
    result = BaselineResult(
        name="ActionCLIP",
        dataset=request.dataset or request.videos.resolve().name,
        scale=request.scale,
        best=best,
        last=last,
        seconds_train=history.seconds,
        seconds_test=seconds_test,
        trainable_parameters=count_parameters(fine_tuning.net),
        curve=tuple(history.test_curve),
        train_curve=tuple(history.train_curve),
        settings=settings_record(settings),
        seed=request.seed,
        details={
            "initial_weights": towers.origin,
            "before_training": before_training,
            "classes": len(split.labels),
            "split": split.record,
            "clips": {"train": len(decoded.train), "test": len(decoded.test)},
            "failed": list(decoded.failed),
            "machine": machine,
        },
    )
    write_result(result, request.out)
    return result


def _run_key(request: ActionClipRequest, split: ClipSplit, source: str, towers: ClipTowers) -> str:
    """Key of everything that a checkpoint follows from."""
    return run_key(
        what="actionclip",
        clips=split.digest,
        settings=request.settings,
        clip=f"{source}: {towers.origin}",
        weights=_weights_digest(towers),
        scale=request.scale,
        seed=request.seed,
        threads=request.threads,
        device=request.device,
    )


def _source(request: ActionClipRequest) -> str:
    """Source of CLIP's initial weights; only the small CLIP may be untrained."""
    if request.scale == "full" and request.clip in ("", "miniworld", "random"):
        raise UsageError(
            "ActionCLIP at full scale fine-tunes a published CLIP, expected --clip FOLDER",
            fix="give a folder with config.json, model.safetensors, tokenizer.json of openai/clip-vit-base-patch32",
        )
    if request.clip:
        return request.clip
    return "miniworld" if weights_file("clip").is_file() else "random"


def _weights_digest(towers: ClipTowers) -> str:
    """Digest of the initial weights, from the sum of every tensor."""
    return run_key(sums={name: float(tensor.double().sum()) for name, tensor in towers.net.state_dict().items()})


class _FineTuning:
    """The network, the sentences of its classes, and one training step."""

    def __init__(
        self, request: ActionClipRequest, towers: ClipTowers, decoded: DecodedClips, device: torch.device
    ) -> None:
        settings = request.settings
        net = build_video_text(towers, settings.fusion, frames=settings.shape.frames, seed=request.seed)
        self.net: Any = net.to(device)
        self.decoded, self.settings, self.device = decoded, settings, device
        self.sentences = class_sentences(decoded.clips.labels, settings.prompts)
        if len(set(self.sentences[0])) < len(decoded.clips.labels):
            raise DataError(
                "two classes have the same words: no sentence can tell them apart",
                fix="rename their folders, or the labels in labels.csv",
            )
        self._classes: Tensor | None = None

    def job(self, request: ActionClipRequest, key: str) -> TrainJob:
        """Return the training of this network, with its checkpoint under ``key``."""
        return TrainJob(
            net=self.net,
            step=self.step,
            test=self.test,
            fit=self.settings.fit,
            clips=self.decoded.clips,
            rows=self.decoded.train,
            seed=(request.seed, 0),
            file=request.out / "checkpoints" / f"actionclip-{key}" / "clip.safetensors",
            before_epoch=self.encode_classes,
        )

    def encode_classes(self) -> None:
        """Encode every class in every prompt with the current text tower."""
        import torch

        self.net.eval()
        with torch.no_grad():
            self._classes = torch.stack([self.net.texts(row) for row in self.sentences])

    def step(self, frames: Bytes, y: Rows, random: np.random.Generator) -> tuple[Tensor, int]:
        """ActionCLIP's loss of one batch, with a random prompt per label, and the number of correct predictions.

        A prediction is the nearest class, as encoded when the epoch began.
        """
        import torch

        truth = torch.from_numpy(y).to(self.device)
        prompts = random.integers(len(self.sentences), size=len(y))
        clips = self.net.clips(as_input(frames, CLIP_MEAN, CLIP_STD, self.device))
        texts = self.net.texts([self.sentences[prompt][row] for prompt, row in zip(prompts, y, strict=True)])
        with torch.no_grad():
            correct = int((self._scores(clips.detach()).argmax(1) == truth).sum())
        return contrastive_loss(clips, texts, truth, self.net.scale(), sharpness=self.settings.sharpness), correct

    def test(self) -> float:
        """Accuracy on the test clips, with freshly encoded classes."""
        self.encode_classes()
        return accuracy(self.net, self.decoded.clips, self.decoded.test, self._predict, batch_size=32)

    def _predict(self, frames: Bytes) -> Rows:
        pixels = as_input(frames, CLIP_MEAN, CLIP_STD, self.device)
        predicted: Rows = self._scores(self.net.clips(pixels)).argmax(1).cpu().numpy()
        return predicted

    def _scores(self, clips: Tensor) -> Tensor:
        assert self._classes is not None
        return class_scores(clips, self._classes, self.net.scale().detach())
