"""Embedding of a clip, compared with the paper's protocol in torch eager and with the machine's limits.

    python -m bench.extraction --clips DIR --fp32 DIR --int8 DIR [--repeats 5]

Bundles of the same weights (``random:full``) in fp32 and int8, real clips. Measured is the time from prepared frames to
the 2816-d embedding, with 12 caption steps on both sides regardless of the tokens. The paper's protocol: Hugging Face's
``generate``, then a second full pass of BLIP for the cross-attention embedding (the first cannot be reused), then
PyTorchVideo's Slow. All candidates run interleaved in one process; compare ratios only. ``optimum`` (2.1) is not among
them: it does not export BLIP.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.openvino_cpu import OpenVinoSession
from flamest.runtime.backends.session import Session
from flamest.runtime.bundle.manifest import FramePreprocessing
from flamest.runtime.bundle.opening import Bundle, open_bundle
from flamest.runtime.keyframes import pick_keyframes
from flamest.runtime.video import find_video_files
from flamest.runtime.video.preprocessing import normalise
from flamest.runtime.vision_language import VisionLanguageModel

from .precision import network_inputs
from .record import store_result
from .training import gemm_peak

STEPS = 12  # of a caption
BATCH = 8
SIDE = 2048  # of the square matmul whose speed is the peak
STAGES = ("vision", "caption and embedding", "cnn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--fp32", type=Path, required=True)
    parser.add_argument("--int8", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    found = find_video_files(arguments.clips)
    chosen = found[:: max(1, len(found) // BATCH)][:BATCH]
    if len(chosen) < BATCH:
        raise SystemExit(f"{len(chosen)} clips under {arguments.clips}, expected {BATCH} or more")
    figures = measure(open_bundle(arguments.fp32), open_bundle(arguments.int8), chosen, arguments.repeats)
    print(json.dumps(figures, indent=2))
    print(f"stored in {store_result('extraction', figures)}")


@dataclass
class Candidate:
    """One way to compute the embedding; ``run`` returns the milliseconds of each stage for ``clips`` clips."""

    run: Callable[[], dict[str, float]]
    arithmetic: str  # fp32, bf16, int8
    clips: int = 1
    taken: list[dict[str, float]] = field(default_factory=list)


def measure(fp32: Bundle, int8: Bundle, clips: list[Path], repeats: int) -> dict[str, Any]:
    seen = list(network_inputs(fp32, clips))
    reference = Paper(fp32, seen)
    candidates = {"torch eager, the paper's way": Candidate(reference.run, "fp32")}
    candidates |= dict(_ours(fp32, int8, seen))
    for candidate in candidates.values():
        candidate.run()  # the first allocates
    for _ in range(repeats):  # interleaved, because the machine is shared
        for candidate in candidates.values():
            candidate.taken.append(candidate.run())
    peaks = {"fp32": gemm_peak(), **other_peaks()}
    work = reference.flop()
    base = _median(candidates["torch eager, the paper's way"])
    keyframe_times = keyframes(fp32, repeats)
    fastest = min(map(_median, candidates.values()))
    return {
        "keyframes": keyframe_times
        | {"percent_of_the_fastest_clip": 100 * keyframe_times["ms"] / (keyframe_times["ms"] + fastest)},
        "what": f"{len(clips)} real clips, {STEPS} caption steps, medians of {repeats} interleaved, ms per clip",
        "gflop": {stage: each / 1e9 for stage, each in work.items()},
        "peak_gflops": {name: peak / 1e9 for name, peak in peaks.items()},
        "contestants": {
            name: {
                "ms_per_clip": _median(candidate),
                "times_faster_than_the_paper": base / _median(candidate),
                "stages_ms": {
                    stage: statistics.median(each[stage] for each in candidate.taken) / candidate.clips
                    for stage in STAGES
                },
                "batch": candidate.clips,
                "percent_of_peak": 100 * sum(work.values()) / peaks[candidate.arithmetic] * 1e3 / _median(candidate),
                "spread_ms": [sum(each.values()) / candidate.clips for each in candidate.taken],
            }
            for name, candidate in candidates.items()
        },
    }


def keyframes(bundle: Bundle, repeats: int) -> dict[str, float]:
    """Time of choosing a clip's keyframes without decoding: the graph over all candidate frames, then k-means."""
    rule = bundle.manifest.keyframes
    size = rule.preprocessing.size
    frames = np.random.default_rng(0).normal(size=(rule.candidates, 3, size, size)).astype(np.float32)
    graph = open_session(bundle.path / bundle.manifest.graphs["keyframes"].file)
    taken = []
    for number in range(repeats + 1):
        clock = Clock()
        features = graph.run({"frames": frames})["features"]
        clock.lap("graph")
        pick_keyframes(features, rule.count, number)
        clock.lap("k-means")
        taken.append(clock.taken)
    median = {stage: statistics.median(each[stage] for each in taken[1:]) for stage in ("graph", "k-means")}
    return {"ms": sum(median.values()), "graph_ms": median["graph"], "k_means_ms": median["k-means"]}


def _median(candidate: Candidate) -> float:
    return statistics.median(sum(each.values()) for each in candidate.taken) / candidate.clips


class Clock:
    """Stopwatch for the milliseconds of each stage."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}
        self._began = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.taken[stage] = (now - self._began) * 1e3
        self._began = now


class Paper:
    """The paper's protocol with unmodified libraries."""

    def __init__(self, bundle: Bundle, seen: list[tuple[Any, Any]]) -> None:
        import torch
        from flamest.export.weights.loading import open_blip, open_video
        from flamest.export.weights.source import parse_source

        self._torch = torch
        self._model = open_blip(parse_source("blip", "random:full")).model.eval()
        video = open_video(parse_source("slow", "random:full"))
        self._net, self._form = video.net.eval(), video.form
        pixels, motion = seen[0]
        manifest: Any = bundle.manifest
        image, video = manifest.vlm.preprocessing, manifest.cnn.preprocessing
        self._pixels = torch.from_numpy(_normalised(pixels, image))
        self._motion = torch.from_numpy(_normalised(motion[0], video).swapaxes(0, 1)[None].copy())

    def run(self) -> dict[str, float]:
        """Run once; the first vision pass counts as caption, because it is part of ``generate``."""
        clock = Clock()
        with self._torch.no_grad():
            rows = self._model.generate(
                self._pixels, min_new_tokens=STEPS, max_new_tokens=STEPS, do_sample=False, num_beams=1
            )
            clock.lap("caption and embedding")
            image = self._model.vision_model(self._pixels).last_hidden_state
            clock.lap("vision")
            self._model.text_decoder.bert(rows[:, -STEPS - 2 :], encoder_hidden_states=image, is_decoder=False)
            first = clock.taken["caption and embedding"]
            clock.lap("caption and embedding")
            clock.taken["caption and embedding"] += first
            self._net(self._motion)
            clock.lap("cnn")
        return clock.taken

    def flop(self) -> dict[str, float]:
        """Operations per stage of one clip with one pass per frame: two per multiply-add."""
        import torch
        from flamest.export.networks.blip import text_module, text_shape, vision_module
        from torch.utils.flop_counter import FlopCounterMode

        def counted(module: Any, *inputs: Any) -> float:
            meta = copy.deepcopy(module).to("meta")
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                meta(*(each.to("meta") for each in inputs))
            return float(counter.get_total_flops())

        shape = text_shape(self._model)
        vision = vision_module(self._model)
        with torch.no_grad():
            cross = [torch.empty_like(each, device="meta") for each in vision.to("meta")(self._pixels.to("meta"))]

        def text(tokens: int, past: int) -> float:
            ids = torch.zeros(1, tokens, dtype=torch.int64)
            mask = torch.zeros(1, 1, tokens, past + tokens)
            cache = [torch.zeros(1, shape.heads, past, shape.head_dim) for _ in range(2 * shape.layers)]
            return counted(text_module(self._model), ids, ids, mask, *cache, *cross)

        vision_flop = counted(vision, self._pixels)
        text_flop = sum(text(1, past) for past in range(STEPS)) + text(STEPS + 2, 0)
        return {"vision": vision_flop, "caption and embedding": text_flop, "cnn": counted(self._net, self._motion)}


def _normalised(frames: Any, rule: FramePreprocessing) -> Any:
    """Frames uint8 [N, S, S, 3] as a graph takes them, as the networks' publishers do: float32 [N, 3, S, S]."""
    return np.stack([normalise(frame, rule) for frame in frames])


def _ours(fp32: Bundle, int8: Bundle, seen: list[tuple[Any, Any]]) -> Iterator[tuple[str, Candidate]]:
    def opened(bundle: Bundle, name: str, computed: str | None = None) -> Session:
        path = bundle.path / bundle.manifest.graphs[name].file
        if computed is None:
            return open_session(path)
        return OpenVinoSession.open(path, computed=computed)  # type: ignore[arg-type]

    def graphs(bundle: Bundle, computed: str | None, text: str | None) -> tuple[Session, Session, Session]:
        return opened(bundle, "vision", computed), opened(bundle, "text", text), opened(bundle, "cnn", computed)

    choices = {
        "ONNX Runtime fp32": (fp32, None, None, "fp32"),
        "OpenVINO fp32": (fp32, "f32", "f32", "fp32"),
        "OpenVINO bf16": (fp32, "bf16", "bf16", "bf16"),
        "ONNX Runtime int8": (int8, None, None, "int8"),
        "OpenVINO int8, text by ONNX Runtime": (int8, "f32", None, "int8"),
    }
    for name, (bundle, computed, text, arithmetic) in choices.items():
        ours = Ours(bundle, *graphs(bundle, computed, text), seen)
        for batch in (1, BATCH):
            yield (
                f"{name}, batch {batch}",
                Candidate(lambda ours=ours, batch=batch: ours.run(batch), arithmetic, batch),
            )  # type: ignore[misc]


class Ours:
    """The bundle's graphs, run like the extractor does."""

    def __init__(
        self, bundle: Bundle, vision: Session, text: Session, cnn: Session, seen: list[tuple[Any, Any]]
    ) -> None:
        spec: Any = bundle.manifest.vlm
        forced = msgspec.structs.replace(spec.caption, end_id=-1, max_new_tokens=STEPS)
        self._model = VisionLanguageModel(vision, text, msgspec.structs.replace(spec, caption=forced))
        self._cnn = cnn
        self._pixels = np.concatenate([pixels for pixels, _ in seen])
        self._motion = np.concatenate([motion for _, motion in seen])

    def run(self, batch: int) -> dict[str, float]:
        clock = Clock()
        cache = self._model.encode_image(self._pixels[:batch])
        clock.lap("vision")
        captions = self._model.caption_ids(cache)
        self._model.embed(cache, captions)
        clock.lap("caption and embedding")
        self._cnn.run({"frames": self._motion[:batch]})
        clock.lap("cnn")
        return clock.taken


def other_peaks() -> dict[str, float]:
    """Operations per second of a square matmul, best of ten: bf16 in OpenVINO, uint8 by int8 in ONNX Runtime."""
    import tempfile

    import onnx
    from onnx import TensorProto, helper

    random, flop = np.random.default_rng(0), 2 * SIDE**3
    matrix = random.normal(size=(SIDE, SIDE)).astype(np.float32)
    weight = helper.make_tensor("b", TensorProto.FLOAT, [SIDE, SIDE], matrix.tobytes(), raw=True)

    def model(node: Any, kinds: tuple[int, int], weights: list[Any]) -> Any:
        values = [helper.make_tensor_value_info(*each, [SIDE, SIDE]) for each in (("a", kinds[0]), ("c", kinds[1]))]
        graph = helper.make_graph([node], "product", values[:1], values[1:], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def best(session: Session, a: Any) -> float:
        times = []
        for _ in range(11):
            began = time.perf_counter()
            session.run({"a": a})
            times.append(time.perf_counter() - began)
        return flop / min(times[1:])

    small = helper.make_tensor(
        "b", TensorProto.INT8, [SIDE, SIDE], random.integers(-127, 127, (SIDE, SIDE), np.int8).tobytes(), raw=True
    )
    integers = model(
        helper.make_node("MatMulInteger", ["a", "b"], ["c"]), (TensorProto.UINT8, TensorProto.INT32), [small]
    )
    floats = model(helper.make_node("MatMul", ["a", "b"], ["c"]), (TensorProto.FLOAT, TensorProto.FLOAT), [weight])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "product.onnx")
        onnx.save_model(floats, str(path))
        bf16 = best(OpenVinoSession.open(path, computed="bf16"), matrix)
    int8 = best(open_session(integers.SerializeToString()), random.integers(0, 255, (SIDE, SIDE), np.uint8))
    return {"bf16": bf16, "int8": int8}


if __name__ == "__main__":
    main()
