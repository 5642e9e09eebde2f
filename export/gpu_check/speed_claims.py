"""Claims about speed. Clips a second count prepared frames unless it says "from files"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .evidence import Claim, Decision, Evidence, proved, refuted, untested
from .plan import CUDA, DEFAULT, TENSORRT

AIM = 1200.0  # clips a second on an H200, counting prepared frames
AIM_GPU = "H200"
FED = 0.9  # share of the smaller of readers and networks that a pipeline must reach
READING = ("decode", "keyframes", "prepare")  # stages of the readers
AT_LEAST = 1.0
CASTS = 1.05  # times the time without casts that is no more than noise


def aim_is_reached(evidence: Evidence) -> Decision:
    best = _best(_prepared(evidence, TENSORRT))
    if best is None:
        return untested(evidence.missing("prepared: tensorrt"))
    batch, speed = best
    text = f"{speed:.0f} clips a second at batch {batch}; the aim is {AIM:.0f} on an {AIM_GPU}"
    figures = {"clips_per_second": speed, "batch": batch, "aim": AIM}
    if AIM_GPU not in evidence.gpu:
        return untested(f"this GPU is an {evidence.gpu}: {text}", **figures)
    return proved(text, **figures) if speed >= AIM else refuted(text, **figures)


def faster_than_torch(evidence: Evidence) -> Decision:
    torch = evidence.output("torch")
    if "batches" not in torch:
        return untested(torch.get("skipped") or evidence.missing("torch"))
    theirs, ours = _best(torch["batches"]), _best(_prepared(evidence, TENSORRT))
    if theirs is None or ours is None:
        return untested(evidence.missing("prepared: tensorrt") if ours is None else "PyTorch ran at no batch")
    ratio = ours[1] / theirs[1]
    text = (
        f"{ours[1]:.0f} clips a second at batch {ours[0]}, torch.compile in bf16 {theirs[1]:.0f} at batch {theirs[0]}: "
        f"{ratio:.2f} times"
    )
    figures = {"tensorrt": ours[1], "torch": theirs[1], "times": ratio}
    return proved(text, **figures) if ratio >= AT_LEAST else refuted(text, **figures)


def faster_than_onnxruntime(evidence: Evidence) -> Decision:
    theirs, ours = _best(_prepared(evidence, CUDA)), _best(_prepared(evidence, TENSORRT))
    if theirs is None or ours is None:
        return untested(evidence.missing("prepared: tensorrt" if ours is None else f"prepared: {CUDA}"))
    ratio = ours[1] / theirs[1]
    text = f"{ours[1]:.0f} clips a second, ONNX Runtime CUDA {theirs[1]:.0f}: {ratio:.2f} times"
    figures = {"tensorrt": ours[1], "onnxruntime_cuda": theirs[1], "times": ratio}
    return proved(text, **figures) if ratio >= AT_LEAST else refuted(text, **figures)


def files_feed_it(evidence: Evidence) -> Decision:
    """From files: the pipeline against the smaller of what its readers and its networks reach alone."""
    name = f"{DEFAULT}: bench"
    bench = evidence.output(name).get("backends", {}).get(TENSORRT)
    networks = _best(_prepared(evidence, TENSORRT))
    if not bench or networks is None:
        return untested(evidence.missing("prepared: tensorrt") if bench else evidence.missing(name))
    reading = sum(row["p50_ms"] for stage, row in bench["stages"].items() if stage in READING)
    readers = 1000 * bench["pipeline"]["readers"] / reading
    limit, reached = min(readers, networks[1]), bench["pipeline"]["clips_per_second"]
    text = (
        f"{reached:.0f} clips a second from files; {bench['pipeline']['readers']} readers could do {readers:.0f}, the "
        f"networks {networks[1]:.0f}"
    )
    figures = {"reached": reached, "readers": readers, "networks": networks[1], "share": reached / limit}
    return proved(text, **figures) if reached >= FED * limit else refuted(text, **figures)


def profiles_are_tuned(evidence: Evidence) -> Decision:
    found = evidence.output("profiles")
    if not found:
        return untested(evidence.missing("profiles"))
    tuned, single = found["each_use"]["p50_ms"], found["one_clip"]["p50_ms"]
    text = (
        f"a caption step of {found['batch']} rows takes {tuned:.2f} ms with a profile for each use, {single:.2f} ms "
        "with one that is tuned for one clip"
    )
    return proved(text, **found) if tuned <= single else refuted(text, **found)


def cuda_graphs_are_faster(evidence: Evidence) -> Decision:
    found = evidence.output("cuda graphs")
    if not found:
        return untested(evidence.missing("cuda graphs"))
    parts = {batch: row["without"]["p50_ms"] / row["with"]["p50_ms"] for batch, row in found.items()}
    text = ", ".join(f"batch {batch}: {ratio:.2f} times as fast" for batch, ratio in parts.items())
    return proved(text, **found) if all(ratio >= 1 for ratio in parts.values()) else refuted(text, **found)


def single_frames_are_faster(evidence: Evidence) -> Decision:
    found = evidence.output("convolutions")
    if not found:
        return untested(evidence.missing("convolutions"))
    flat, deep = found["frame_by_frame"]["batches"], found["three_dimensional"]["batches"]
    parts = {batch: deep[batch]["p50_ms"] / flat[batch]["p50_ms"] for batch in flat}
    text = ", ".join(f"batch {batch}: {ratio:.2f} times as fast as Conv3d" for batch, ratio in parts.items())
    return proved(text, **found) if all(ratio >= 1 for ratio in parts.values()) else refuted(text, **found)


def casts_cost_nothing(evidence: Evidence) -> Decision:
    found = evidence.output("attention casts")
    if not found:
        return untested(evidence.missing("attention casts"))
    there, gone = found["with"]["batches"], found["without"]["batches"]
    parts = {batch: there[batch]["p50_ms"] / gone[batch]["p50_ms"] for batch in there}
    text = ", ".join(f"batch {batch}: {ratio:.2f} times the time without them" for batch, ratio in parts.items())
    text = f"'vision' in {found['precision']}, {text}"
    return proved(text, **found) if all(ratio <= CASTS for ratio in parts.values()) else refuted(text, **found)


def int8_is_faster(evidence: Evidence) -> Decision:
    figures: dict[str, float] = {}
    for precision in ("int8", "bf16"):
        name = f"{precision}: bench"
        graphs = evidence.output(name).get("backends", {}).get(TENSORRT, {}).get("graphs", {})
        if "vision" not in graphs:
            return untested(f"{evidence.missing(name)}, or TensorRT did not run it")
        figures[precision] = graphs["vision"]["p50_ms"]
    text = f"'vision' takes {figures['int8']:.2f} ms in int8, {figures['bf16']:.2f} in bf16"
    return proved(text, **figures) if figures["int8"] <= figures["bf16"] else refuted(text, **figures)


def large_batches_fit(evidence: Evidence) -> Decision:
    found = _prepared(evidence, TENSORRT)
    if not found:
        return untested(evidence.missing("prepared: tensorrt"))
    problems = {batch: row["problem"] for batch, row in found.items() if "problem" in row}
    if problems:
        return refuted("; ".join(f"batch {batch}: {problem}" for batch, problem in problems.items()))
    memory = {batch: row.get("gpu_mb") for batch, row in found.items()}
    return proved(f"every batch up to {max(map(int, found))} ran", gpu_mb=memory)


def _prepared(evidence: Evidence, backend: str) -> Mapping[str, Any]:
    found = evidence.output(f"prepared: {backend}").get("batches", {})
    return found if isinstance(found, dict) else {}


def _best(batches: Mapping[str, Any]) -> tuple[str, float] | None:
    """Batch and clips a second of the fastest; None where none ran."""
    ran = {batch: float(row["clips_per_second"]) for batch, row in batches.items() if "clips_per_second" in row}
    return max(ran.items(), key=lambda each: each[1]) if ran else None


MEASURE = "see the profile in the report for what takes the time, and attach the report to an issue"
SPEED_CLAIMS = (
    Claim("aim", f"{AIM:.0f} clips a second on an {AIM_GPU}, counting prepared frames.", aim_is_reached, MEASURE),
    Claim("faster_than_torch", "TensorRT is at least as fast as torch.compile in bf16 on this GPU.", faster_than_torch,
          MEASURE),
    Claim("faster_than_onnxruntime", "TensorRT is at least as fast as ONNX Runtime CUDA.", faster_than_onnxruntime,
          "use --backend onnxruntime-cuda on this GPU until this is understood"),
    Claim("files_feed_it", "From files, extraction reaches 90 % of the smaller of its readers and its networks.",
          files_feed_it, "try more readers; the stages in the report show which side waits"),
    Claim("profiles_are_tuned", "A profile for each use of the text graph beats one that is tuned for one clip.",
          profiles_are_tuned, MEASURE),
    Claim("cuda_graphs_are_faster", "CUDA graphs make a caption step faster.", cuda_graphs_are_faster, MEASURE),
    Claim("single_frames_are_faster", "Slow as convolutions of single frames is at least as fast as with Conv3d.",
          single_frames_are_faster, "the three-dimensional form may serve TensorRT better: tell us in an issue"),
    Claim("casts_cost_nothing", "The casts to fp32 around the softmax of 'vision' cost no more than 5 %.",
          casts_cost_nothing, "a softmax in half precision may be worth its error on this GPU: tell us in an issue"),
    Claim("int8_is_faster", "int8 is faster than bf16.", int8_is_faster, "use bf16 on this GPU"),
    Claim("large_batches_fit", "Every batch that was asked for fits into the GPU's memory.", large_batches_fit,
          "give extraction a smaller batch on this GPU"),
)  # fmt: skip
