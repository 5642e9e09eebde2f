"""ActionCLIP, the paper's centralised rival (Wang et al. 2021): CLIP fine-tuned on clips and their labels' words.

https://arxiv.org/abs/2109.08472, with the settings of the authors' code. docs/rivals.md says what is
theirs and what is our choice. Every parameter of CLIP is trained, on all clips in one place.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...base.errors import DataError, UsageError
from ...base.progress import Progress
from ...export.networks.small import SMALL_FORMS, weights_file
from .checkpoints import run_key
from .clip_towers import DEVIATION, MEAN, ClipTowers, Fusion, build_video_text, load_towers
from .clips import Bytes, Filmed, FilmShape, Rows, film, plan_films
from .losses import PROMPTS, TARGET_SHARPNESS, class_scores, class_sentences, contrastive_loss
from .networks import Scale, as_input, count_parameters
from .result import Device, RivalResult, best_and_last, describe_machine, torch_on, write_result
from .training import Fit, TrainJob, accuracy, learn

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ActionClipSettings:
    fit: Fit
    film: FilmShape
    fusion: Fusion = "mean"
    prompts: tuple[str, ...] = PROMPTS
    sharpness: float = TARGET_SHARPNESS
    test_share: float = 0.2


@dataclass(frozen=True)
class ActionClipRequest:
    """``clip``: miniworld, random, or a local folder of a CLIP model; "" takes the mini-world's if it is trained."""

    videos: Path
    out: Path
    scale: Scale = "small"
    settings: ActionClipSettings = field(default_factory=lambda: actionclip_settings("small"))
    clip: str = ""
    dataset: str = ""  # as the result names it; the folder's name by default
    seed: int = 0
    threads: int = 2
    device: Device = "auto"


def actionclip_settings(scale: Scale, *, epochs: int | None = None) -> ActionClipSettings:
    """The defaults of a scale. Raises UsageError on ``epochs`` below 1."""
    if epochs is not None and epochs < 1:
        raise UsageError(f"ActionCLIP was asked to train for {epochs} epochs, expected 1 or more")
    if scale == "full":  # the authors' optimiser, rate, decay, batch and warm-up; 80 epochs as the paper says
        fit = Fit(epochs or 80, 64, 5e-6, weight_decay=0.2, betas=(0.9, 0.98), warmup=0.1)
        return ActionClipSettings(fit, FilmShape(frames=8, size=224, spare=1, margin=0, filter="bicubic"))
    fit = Fit(epochs or 12, 16, 5e-4, weight_decay=0.05, betas=(0.9, 0.98))
    size = SMALL_FORMS["clip"].crop
    return ActionClipSettings(fit, FilmShape(frames=4, size=size, fit="stretch", filter="bicubic"))


def actionclip_steps(request: ActionClipRequest) -> int:
    """How far ``run_actionclip`` advances its progress: clips decoded, and clips trained on in every epoch."""
    plan = plan_films(request.videos, test_share=request.settings.test_share, seed=request.seed)
    return len(plan.videos) + request.settings.fit.epochs * len(plan.train)


def run_actionclip(request: ActionClipRequest, progress: Progress) -> RivalResult:
    """Fine-tune, test after every epoch; writes ``request.out``/actionclip.json and gives the same.

    Takes up what the checkpoint under ``request.out``/checkpoints holds of the same run. ``progress``
    advances by one per clip, ``actionclip_steps`` in all. Raises DataError, StorageError, UsageError,
    MissingExtra, SettingsError as its parts do.
    """
    settings = request.settings
    plan = plan_films(request.videos, test_share=settings.test_share, seed=request.seed)
    source = _source(request)
    towers = load_towers(source, seed=request.seed)
    if towers.image_size != settings.film.size:
        raise UsageError(
            f"this CLIP reads frames of {towers.image_size} pixels, {settings.film.size} were asked for",
            fix=f"--size {towers.image_size}",
        )
    with torch_on(request.device, request.threads) as device:
        progress.describe("decoding the clips")
        filmed = film(plan, settings.film, progress)
        key = run_key(
            what="actionclip",
            clips=plan.digest,
            settings=settings,
            clip=f"{source}: {towers.origin}",
            weights=_weights_digest(towers),
            scale=request.scale,
            seed=request.seed,
            threads=request.threads,
            device=request.device,
        )
        teaching = _Teaching(request, towers, filmed, device)
        progress.describe("fine-tuning CLIP")
        untaught = teaching.test()
        learned = learn(
            TrainJob(
                net=teaching.net,
                step=teaching.step,
                test=teaching.test,
                fit=settings.fit,
                films=filmed.films,
                rows=filmed.train,
                seed=(request.seed, 0),
                file=request.out / "checkpoints" / f"actionclip-{key}" / "clip.safetensors",
                before_epoch=teaching.read_classes,
            ),
            progress,
        )
        started = time.monotonic()
        teaching.test()
        seconds_test = time.monotonic() - started
        machine = describe_machine(device, request.threads)
    best, last = best_and_last(learned.test_curve)
    result = RivalResult(
        name="ActionCLIP",
        dataset=request.dataset or request.videos.resolve().name,
        scale=request.scale,
        best=best,
        last=last,
        seconds_train=learned.seconds,
        seconds_test=seconds_test,
        trainable_parameters=count_parameters(teaching.net),
        curve=tuple(learned.test_curve),
        train_curve=tuple(learned.train_curve),
        settings=dataclasses.asdict(settings),
        seed=request.seed,
        details={
            "initial_weights": towers.origin,
            "before_training": untaught,
            "classes": len(plan.labels),
            "split": plan.split,
            "clips": {"train": len(filmed.train), "test": len(filmed.test)},
            "failed": list(filmed.failed),
            "machine": machine,
        },
    )
    write_result(result, request.out)
    return result


def _source(request: ActionClipRequest) -> str:
    """Where CLIP's first weights come from; small ones may be untrained, full ones must be somebody's."""
    if request.scale == "full" and request.clip in ("", "miniworld", "random"):
        raise UsageError(
            "ActionCLIP at full scale fine-tunes a published CLIP, and none was given",
            fix="--clip FOLDER with config.json, model.safetensors and tokenizer.json of openai/clip-vit-base-patch32",
        )
    if request.clip:
        return request.clip
    return "miniworld" if weights_file("clip").is_file() else "random"


def _weights_digest(towers: ClipTowers) -> str:
    """Enough of the first weights to tell two sets apart: sums of every tensor."""
    return run_key(sums={name: float(tensor.double().sum()) for name, tensor in towers.net.state_dict().items()})


class _Teaching:
    """The network, its sentences, and one step of training."""

    def __init__(self, request: ActionClipRequest, towers: ClipTowers, filmed: Filmed, device: torch.device) -> None:
        settings = request.settings
        net = build_video_text(towers, settings.fusion, frames=settings.film.frames, seed=request.seed)
        self.net: Any = net.to(device)
        self.filmed, self.settings, self.device = filmed, settings, device
        self.sentences = class_sentences(filmed.films.labels, settings.prompts)
        if len(set(self.sentences[0])) < len(filmed.films.labels):
            raise DataError(
                "two classes have the same words, so that no sentence can tell them apart",
                fix="rename their folders, or the labels in labels.csv",
            )
        self._classes: Tensor | None = None

    def read_classes(self) -> None:
        """Read every class in every prompt with the text tower as it is now."""
        import torch

        self.net.eval()
        with torch.no_grad():
            self._classes = torch.stack([self.net.texts(row) for row in self.sentences])

    def step(self, frames: Bytes, y: Rows, random: np.random.Generator) -> tuple[Tensor, int]:
        """ActionCLIP's loss of one batch, each label in a prompt drawn for it.

        Recognised is a clip whose nearest class, as the text tower read it when the epoch began, is its own.
        """
        import torch

        truth = torch.from_numpy(y).to(self.device)
        prompts = random.integers(len(self.sentences), size=len(y))
        clips = self.net.clips(as_input(frames, MEAN, DEVIATION, self.device))
        texts = self.net.texts([self.sentences[prompt][row] for prompt, row in zip(prompts, y, strict=True)])
        with torch.no_grad():
            right = int((self._scores(clips.detach()).argmax(1) == truth).sum())
        return contrastive_loss(clips, texts, truth, self.net.scale(), sharpness=self.settings.sharpness), right

    def test(self) -> float:
        """Accuracy on the test clips, the classes read anew."""
        self.read_classes()
        return accuracy(self.net, self.filmed.films, self.filmed.test, self._guess, batch_size=32)

    def _guess(self, frames: Bytes) -> Rows:
        seen = as_input(frames, MEAN, DEVIATION, self.device)
        guessed: Rows = self._scores(self.net.clips(seen)).argmax(1).cpu().numpy()
        return guessed

    def _scores(self, clips: Tensor) -> Tensor:
        assert self._classes is not None
        return class_scores(clips, self._classes, self.net.scale().detach())
