"""A GPU and readers that take their time and no core, under the real Extractor: real queues, batches, copies, frames.

A run of a graph occupies the device for the time that its rows would take, one run after the other. Arrays that are
given to it are copied once, as into page-locked memory. Reading a clip sleeps, as a thread does that waits for a
decoder process, and gives frames of the real size; making them is counted with decoding.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from flamest.runtime import extractor as extractor_module
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.bundle.graph_records import Graph, Parity
from flamest.runtime.bundle.manifest import (
    CaptionRule,
    FramePreprocessing,
    KeyframeRule,
    Manifest,
    SpatioTemporal,
    TextShape,
    VisionLanguage,
    layer_names,
)
from flamest.runtime.clip_records import Candidates, Clip
from flamest.runtime.extractor import Extractor, PipelineOptions
from flamest.runtime.video.clip_reader import PreparedClip

# Shares of the device's time for a clip: of its 272 GFLOP vision has 127, Slow 105, keyframes 35. A caption step reads
# the text network's weights and each row's keys and values: at 4 TB/s 0.3 ms with its launches, and 5 us a row.
SHARES = {"vision": 0.42, "cnn": 0.35, "keyframes": 0.12, "embed": 0.01}
STEP_S, STEP_ROW_S, STEP_RATE = 0.3e-3, 5e-6, 1200.0  # of a device that does STEP_RATE clips per second
CAPTION_TOKENS = 10  # of a usual caption; the step that ends it is the 11th
FRAME_SIZES = {"captioned": (1, 384, 384, 3), "cnn": (8, 256, 256, 3), "candidates": (32, 112, 112, 3)}
START, END = 1, 2
TEXT = TextShape(layers=12, heads=12, head_dim=64, width=768, vocabulary=30524)
CROP = FramePreprocessing(256, "crop", "bilinear-bytes", (0.45,) * 3, (0.225,) * 3)


@dataclass(frozen=True)
class Rates:
    """Clips per second that the device and the readers could do alone.

    ``keyframes``: the readers ask the device for the candidates' features; otherwise they come with prepared frames.
    """

    device: float
    readers: float
    keyframes: bool = True


class _Run:
    """A run of a graph: ``seconds`` of the whole device, after other runs."""

    def __init__(self, seconds: float, after: Sequence[_Run]) -> None:
        self.left = seconds
        self.after = tuple(after)
        self.ended = threading.Event()

    @property
    def ready(self) -> bool:
        return all(run.ended.is_set() for run in self.after)


class _Device:
    """A device that starts runs when they are given to it. A session's follow each other; of n sessions that compute
    at one time each gets 1/n of the device."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._streams: dict[str, deque[_Run]] = {}
        threading.Thread(target=self._compute, daemon=True).start()

    def start(self, stream: str, seconds: float, after: Sequence[_Run] = ()) -> _Run:
        run = _Run(seconds, after)
        with self._changed:
            self._streams.setdefault(stream, deque()).append(run)
            self._changed.notify()
        return run

    def _compute(self) -> None:
        with self._changed:
            while True:
                active = [runs[0] for runs in self._streams.values() if runs and runs[0].ready]
                began = time.perf_counter()
                self._changed.wait(min(run.left for run in active) * len(active) if active else None)
                for run in active:
                    run.left -= (time.perf_counter() - began) / len(active)
                for runs in self._streams.values():
                    while runs and runs[0].left <= 0:
                        runs.popleft().ended.set()


class _OnDevice:
    """A value, or rows, whose contents nobody looks at."""

    def __init__(self, shape: tuple[int, ...], run: _Run | None = None, host: np.ndarray | None = None) -> None:
        self.shape = shape
        self._run, self._host = run, host

    def wait(self) -> None:
        if self._run is not None:
            self._run.ended.wait()

    def numpy(self) -> np.ndarray:
        self.wait()
        return np.zeros(self.shape, np.float32) if self._host is None else self._host

    def first(self, count: int) -> _OnDevice:
        return _OnDevice((count, *self.shape[1:]))

    def put(self, row: int, value: object, index: int) -> None: ...

    def copy(self, row: int, source: int) -> None: ...

    def clear(self, row: int) -> None: ...


class SimulatedSession:
    """A graph of the bundle. ``seconds``: of a run with so many rows."""

    computes_on_host = False
    where = "simulated GPU"

    def __init__(self, name: str, device: _Device, rate: float, *, largest_batch: int) -> None:
        self.largest_batch = largest_batch
        self._name, self._device, self._rate = name, device, rate
        self._pinned: dict[tuple[int, ...], np.ndarray] = {}
        cross = layer_names("cross", TEXT.layers)
        past = layer_names("past", TEXT.layers)
        self.inputs: tuple[str, ...] = {
            "vision": ("pixels",),
            "text": ("token_ids", "positions", "mask", *past, *cross),
        }.get(name, ("frames",))
        self.outputs: tuple[str, ...] = {
            "vision": cross,
            "text": ("next_token", "logits", "hidden", *layer_names("present", TEXT.layers)),
            "cnn": ("embedding",),
            "keyframes": ("features",),
        }[name]

    def value(self, of: Any) -> Any:
        if isinstance(of, _OnDevice):
            return of
        if of.shape not in self._pinned:
            self._pinned[of.shape] = np.empty_like(of)
        np.copyto(self._pinned[of.shape], of)
        return _OnDevice(of.shape)

    borrow = value

    def rows(self, input_name: str, shape: tuple[int, ...]) -> _OnDevice:
        return _OnDevice(shape)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.run_values(feeds, outputs).items()}

    def run_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, into: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        rows = len(feeds["positions"]) if self._name == "text" else self.value(next(iter(feeds.values()))).shape[0]
        if self._name == "text":
            return self._text(feeds, rows, outputs or ())
        clips = rows / FRAME_SIZES["candidates"][0] if self._name == "keyframes" else rows
        run = self._device.start(self._name, SHARES[self._name] * clips / self._rate)
        if self._name == "vision":
            patches = {name: (64, 577) if "_key_" in name else (577, 64) for name in self.outputs}
            return {name: _OnDevice((rows, TEXT.heads, *patches[name]), run) for name in self.outputs}
        width = {"cnn": 2048, "keyframes": 512}[self._name]
        return {self.outputs[0]: _OnDevice((rows, width), run, np.ones((rows, width), np.float32))}

    def _text(self, feeds: Mapping[str, Any], rows: int, outputs: Sequence[str]) -> dict[str, Any]:
        if "next_token" not in outputs:
            run = self._device.start("text", SHARES["embed"] * rows / self._rate)
            hidden = np.ones((*feeds["token_ids"].shape, TEXT.width), np.float32)
            return {"hidden": _OnDevice(hidden.shape, run, hidden)}
        run = self._device.start("text", (STEP_S + STEP_ROW_S * rows) * STEP_RATE / self._rate)
        tokens = np.where(feeds["positions"][:, 0] >= CAPTION_TOKENS, END, 7)
        return {name: _OnDevice((rows,), run, tokens if name == "next_token" else None) for name in outputs}


class _SimulatedReader:
    """A ClipReader that sleeps for as long as a decoder process would take."""

    frames = {name: np.ones(shape, np.uint8) for name, shape in FRAME_SIZES.items()}  # noqa: RUF012

    def __init__(self, seconds: float, features: Any) -> None:
        self.video = SimpleNamespace(peak_kb=0, interrupt=lambda: None)
        self._seconds, self._features = seconds, features

    def read(self, clip: Clip) -> PreparedClip:
        began = time.perf_counter()
        small = self.frames["candidates"]
        time.sleep(0.6 * self._seconds)  # the first request: all frames are decoded, 32 come back
        if self._features is not None:
            self._features.of(Candidates(clip.path, 0, small, np.zeros(len(small)), 100, ()))
        # The rest of the time, in which eight frames come back and are prepared.
        time.sleep(max(0.0, self._seconds - (time.perf_counter() - began)))
        return PreparedClip(
            clip,
            self.frames["captioned"],
            self.frames["cnn"],
            0,
            (0.0,),
            {"decode": 0.0, "keyframes": 0.0, "prepare": 0.0},
            (),
        )

    def close(self) -> None: ...


def _manifest() -> Manifest:
    rule = CaptionRule(START, END, 0, 3, 4, max_new_tokens=20)
    square = FramePreprocessing(384, "stretch", "bicubic", (0.5,) * 3, (0.25,) * 3)
    graph = Graph("", 17, (), (), {}, "bf16", {})
    return Manifest(
        schema=4, created="", extractor="blip+slow", backend="onnx", extraction_seed=0,
        graphs=dict.fromkeys(("keyframes", "vision", "text", "cnn"), graph),
        keyframes=KeyframeRule(8, 32, CROP, 512, "simulated"),
        vlm=VisionLanguage(square, TEXT, rule, "bidirectional", 768),
        cnn=SpatioTemporal("slow", CROP, 8, "keyframes", 2048, "mean"),
        sources={}, files={"tokenizer.json": SimpleNamespace(sha256="0" * 64)}, parity=Parity({}, 0, 0), versions={},
    )  # fmt: skip


def _tokenizer() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"word{number}": number for number in range(16)}, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str().encode()


@contextmanager
def simulated_extractor(rates: Rates, pipeline: PipelineOptions, *, gpu_mb: int = 141_000) -> Iterator[Extractor]:
    """The real Extractor over simulated sessions and readers. ``pipeline.readers`` is given."""
    device, data = _Device(), _tokenizer()
    bundle = SimpleNamespace(manifest=_manifest(), tokenizer=Path("tokenizer.json"), read=lambda _: data)
    readers = pipeline.readers or 1

    class Opener:
        def __init__(self, *_: object) -> None:
            self.placements: dict[str, Any] = {}

        def close(self) -> None: ...

        def open(self, name: str) -> SimulatedSession:
            largest = 1 << 12 if name == "keyframes" else 128
            rate = rates.device * (1.0 if rates.keyframes else 1.0 - SHARES["keyframes"])
            return SimulatedSession(name, device, rate, largest_batch=largest)

    facts = MachineFacts(gpu=Gpu("simulated", "9.0", gpu_mb))
    seconds = readers / rates.readers

    def reader(_manifest: Manifest, _video: object, features: Any) -> _SimulatedReader:
        return _SimulatedReader(seconds, features if rates.keyframes else None)

    opening = OpeningOptions(facts=facts)
    opener: Any = Opener(bundle, opening)
    with mock.patch.object(extractor_module, "ClipReader", reader):
        opened = Extractor(bundle, [None] * readers, pipeline, opening, opener)  # type: ignore[list-item]
    with opened:
        yield opened
