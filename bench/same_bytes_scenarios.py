"""Scenarios of ``same_bytes`` on one machine: export, extract, train, predict, and a table of experiments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .same_bytes_normal import arrays, database, files, model, normalised
from .same_bytes_tree import Tree

Records = Iterator[tuple[str, Any]]
# Together: every network and way of captioning, every precision that a CPU has.
BUNDLES = {
    "blip+slow": ("--blip", "random:tiny", "--slow", "random:tiny"),
    "miniworld": ("--weights", "miniworld"),
    "miniworld-int8": ("--weights", "miniworld", "--precision", "int8"),
    "clip": ("--extractor", "clip", "--weights", "random:tiny"),
    "blip-text+i3d": ("--extractor", "blip-text+i3d", "--weights", "random:tiny"),
    "resnet3d": ("--extractor", "resnet3d", "--weights", "random:tiny:7"),
    "videomae-fp16": ("--extractor", "videomae", "--weights", "random:tiny", "--precision", "fp16"),
}
# One after the other, into one store; where the networks run.
EXTRACTED = {
    "miniworld": "onnxruntime",
    "miniworld-int8": "onnxruntime",
    "clip": "onnxruntime",
    "blip-text+i3d": "openvino",
}
PREDICTING = "miniworld"
FRAMES, SIZE, SHADES = 24, (96, 128), {"slide": (230, 40, 40), "rise": (40, 80, 230)}
CLIPS = 4  # of a label
# Of what --help says: a line of the list at its end; an option with what it takes; its default and bounds.
SUBCOMMAND = re.compile(r"^  ([a-z0-9-]+)(?:  |$)", re.MULTILINE)
OPTION = re.compile(r"^  (-\S+(?: \S+)*)", re.MULTILINE)
DEFAULT = re.compile(r"\[(?:default|required|[\d.]+<|x)[^\]]*\]")
ONE_THREAD = ("--threads", "1")
TRAINING = ("--passes", "3", "--epochs", "2", "--batch-size", "4", "--hidden", "16,8", "--seed", "5", *ONE_THREAD)
TABLES = {
    "table5": ("--rounds", "2", "--epochs", "1", "--seeds", "1"),
    "table8": ("--rounds", "2", "--epochs", "1", "--seeds", "1"),
}


@dataclass(frozen=True, eq=False)
class ScenarioContext:
    """A tree, and what several scenarios need of it, made when one of them asks."""

    tree: Tree
    cases: tuple[str, ...] = ()  # of federation; all where none is named

    def bundle(self, name: str) -> Path:
        """The folder of a bundle; the answer of the command that made it is next to it."""
        out = self.tree.work / "bundles" / name
        if not out.exists():
            answer = self.tree.run("flamest-export", "--backend", "onnx", *BUNDLES[name], *ONE_THREAD, "--out", out)
            out.with_name(f"{name}.json").write_text(json.dumps(answer))
        return out

    @cached_property
    def videos(self) -> Path:
        """A folder of clips, LABEL/clip.mp4, two of which cannot be read."""
        folder = self.tree.work / "videos"
        for label in SHADES:
            (folder / label).mkdir(parents=True)
            for number in range(CLIPS):
                _draw(folder / label / f"scene{number}_take.mp4", label, number)
        whole = (folder / "rise" / "scene0_take.mp4").read_bytes()
        (folder / "rise" / "cut_short.mp4").write_bytes(whole[: len(whole) // 3])
        (folder / "slide" / "no_video.mp4").write_bytes(b"this is no video\n" * 40)
        return folder

    @cached_property
    def extracted(self) -> dict[str, Any]:
        """By bundle: what ``extract`` answered; the features are in ``store``."""
        return {name: self.extract(name, "--backend", backend) for name, backend in EXTRACTED.items()}

    def extract(self, bundle: str, *words: str) -> Any:
        """Run ``extract`` with a bundle on all clips; its answer."""
        options = ("--bundle", self.bundle(bundle), "--videos", self.videos, "--store", self.store)
        return self.tree.run("flamest-agent", "extract", *options, *ONE_THREAD, *words)

    @property
    def store(self) -> Path:
        return self.tree.work / "features.sqlite"

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """By bundle: the options that choose its features in the store."""
        manifests = {name: json.loads(self.bundle(name).with_name(f"{name}.json").read_text()) for name in EXTRACTED}
        return {
            name: ("--fingerprint", answer["fingerprint"], "--precision", answer["precision"])
            for name, answer in manifests.items()
        }


def commands(context: ScenarioContext) -> Records:
    """Every command and subcommand with its options and defaults: what ``--help`` says."""
    for script in context.tree.scripts:
        found: dict[str, Any] = {}
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            words = waiting.pop()
            answer = context.tree.output_of(script, *words, "--help")
            options, _, listed = answer.partition("\nCommands:\n")
            names = SUBCOMMAND.findall(listed)
            found[" ".join((script, *words))] = {
                "options": OPTION.findall(options),
                "defaults": DEFAULT.findall(" ".join(options.split())),
                "subcommands": sorted(names),
                "words": answer.splitlines(),
            }
            waiting += [(*words, name) for name in names]
        yield script, found


def export(context: ScenarioContext) -> Records:
    """Bundles of random and of the mini-world's networks."""
    for name in BUNDLES:
        folder = context.bundle(name)
        answer = json.loads(folder.with_name(f"{name}.json").read_text())
        yield f"{name}: answer", normalised(answer, context.tree.home)
        manifest = json.loads((folder / "bundle.json").read_text())
        yield f"{name}: bundle.json", normalised(manifest, context.tree.home)
        yield f"{name}: files", {path: made for path, made in files(folder).items() if path != "bundle.json"}
        inspected = context.tree.run("flamest-export", "inspect", folder)
        yield f"{name}: inspect", normalised(inspected, context.tree.home)


def extraction(context: ScenarioContext) -> Records:
    """Clips to features, with several bundles into one store; clips that cannot be read among them."""
    tree = context.tree
    for name, answer in context.extracted.items():
        yield f"{name}: answer", normalised(answer, tree.home)
    yield "store", database(context.store)
    yield "again: answer", normalised(context.extract("miniworld", "--retry"), tree.home)
    for name, kind in context.kinds.items():
        out = tree.work / f"{name}.npz"
        yield (
            f"{name}: features",
            normalised(tree.run("flamest-agent", "features", "--store", context.store, "--out", out, *kind), tree.home),
        )
        yield f"{name}: arrays", arrays(out)


def training(context: ScenarioContext) -> Records:
    """A head on the features of each bundle, and what it says of the clips."""
    tree, extracted = context.tree, context.extracted
    clips = sorted(context.videos.rglob("*.mp4"))
    for name in extracted:
        out = tree.work / f"{name}.safetensors"
        options = ("--store", context.store, "--out", out)
        answer = tree.run("flamest-agent", "train", *options, *context.kinds[name], *TRAINING)
        yield f"{name}: answer", normalised(answer, tree.home)
        yield f"{name}: model", model(out)
        if name == PREDICTING:
            chosen = ("--bundle", context.bundle(name), "--model", out, "--backend", EXTRACTED[name])
            answer = tree.run("flamest-agent", "predict", *clips, *chosen, *ONE_THREAD)
            yield f"{name}: predictions", normalised(answer, tree.home)


def experiments(context: ScenarioContext) -> Records:
    """Small simulations of the paper's tables on features drawn here."""
    tree = context.tree
    source, store, out = tree.work / "drawn.npz", tree.work / "drawn.sqlite", tree.work / "experiments"
    random = np.random.default_rng(11)
    y = np.arange(160) % 4
    x = (random.normal(size=(4, 12))[y] * 0.6 + random.normal(size=(160, 12))).astype(np.float32)
    np.savez(source, x=x, y=np.array(["a", "b", "c", "d"])[y], group=np.array([f"g{row // 4}" for row in range(160)]))
    tree.run("flamest-agent", "import-features", source, "--store", store)
    for name, words in TABLES.items():
        answer = tree.run("flamest-experiment", name, "--store", store, "--out", out, "--jobs", "1", *words)
        yield f"{name}: rows", normalised(answer, tree.home)
        yield f"{name}: file", normalised(json.loads((out / f"{name}.json").read_text()), tree.home)
        yield f"{name}: csv", (out / f"{name}.csv").read_text().splitlines()
    runs = {path.name: json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))}
    yield "runs", normalised(runs, tree.home)


def _draw(path: Path, label: str, number: int) -> None:
    """A clip of a square that moves over a ground with some texture, in one of two codecs."""
    import av

    random = np.random.default_rng([sorted(SHADES).index(label), number])
    height, width = SIZE
    ground = random.integers(0, 60, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4" if number % 2 else "libx264", rate=12, options={"threads": "1"})
        stream.pix_fmt, stream.height, stream.width = "yuv420p", height, width
        for frame in range(FRAMES):
            picture = ground.copy()
            along = 4 + 3 * frame * (1 + number % 2) // 2
            top, left = (20, along) if label == "slide" else (height - 24 - along, 40)
            picture[max(top, 0) : max(top, 0) + 20, left : left + 20] = SHADES[label]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
