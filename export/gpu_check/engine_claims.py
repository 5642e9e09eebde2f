"""Claims about right results: engines, precisions, captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...runtime.backends.unavailable import Code
from .evidence import Claim, Decision, Evidence, proved, refuted, untested
from .plan import CUDA, MINIWORLD, TENSORRT

HALVES = ("fp16", "bf16")
CAPTION_COSINE = 0.9999  # of an embedding of the mini-world, to ONNX Runtime CPU in fp32
FUSED = ("mha", "fmha", "flash", "attention")  # in the names of layers and kernels


def driver_fits(evidence: Evidence) -> Decision:
    machine = evidence.output("doctor").get("machine", {})
    driver, package = str(machine.get("cuda") or ""), str(machine.get("versions", {}).get("cuda-bindings", ""))
    if not evidence.ok("doctor"):
        return untested(evidence.missing("doctor"))
    if not driver or not package:
        return untested("doctor names no CUDA version of the driver or no package cuda-bindings")
    figures = {"driver_cuda": driver, "cuda_bindings": package}
    fits = int(driver.split(".")[0]) >= int(package.split(".")[0])
    text = f"the driver knows CUDA {driver}, the packages are for CUDA {package.split('.')[0]}"
    return proved(text, **figures) if fits else refuted(text, **figures)


def one_layer(evidence: Evidence) -> Decision:
    found = evidence.output("one layer")
    if not found:
        return _failed(evidence, "one layer")
    return proved(
        f"TensorRT {found['tensorrt']} built and ran it in {found['seconds']:.1f} s; "
        f"{found['verdict']['runs']} runs were right",
        **found,
    )


def exports(evidence: Evidence) -> Decision:
    builds = dict(evidence.named("build"))
    wrong = {name: evidence.missing(f"{name}: build") for name, step in builds.items() if not step.ok}
    if wrong:
        return refuted("; ".join(wrong.values()), failed=sorted(wrong))
    return proved(f"exported within their limits: {', '.join(builds)}", bundles=sorted(builds))


def engines_right(evidence: Evidence) -> Decision:
    """Every build ends with the comparison; its verdict is in the output of ``flamest-export engines``."""
    seen, wrong = [], []
    for precision, step in evidence.named("engines"):
        error = evidence.error(f"{precision}: engines")
        if error.get("code") == Code.ENGINE_WRONG or Code.ENGINE_WRONG in str(error.get("message", "")):
            wrong.append(f"{precision}: {error['message']}")
        elif step.ok:
            seen += [f"{precision}: {row['graph']}" for row in engine_rows(step.output) if row.get("verdict")]
            wrong += [
                f"{precision}: graph '{row['graph']}': {row['verdict']['wrong']}"
                for row in engine_rows(step.output)
                if (row.get("verdict") or {}).get("wrong")
            ]
    failed = [evidence.missing(f"{name}: engines") for name, step in evidence.named("engines") if not step.ok]
    if wrong:
        return refuted("; ".join(wrong), right=seen)
    if failed or not seen:
        return untested("; ".join(failed) or "no engine was compared", right=seen)
    return proved(f"{len(seen)} engines equal their ONNX graphs at every shape that was compared", right=seen)


def with_cuda_graphs(evidence: Evidence) -> Decision:
    rows = list(_verdicts(evidence))
    if not rows:
        return untested("no engine was compared with CUDA graphs")
    off = {name: "; ".join(row.get("remarks", ())) for name, row in rows if not row["cuda_graphs"]}
    if off:
        why = "; ".join(f"{name}: {remark or 'not with CUDA graphs'}" for name, remark in off.items())
        return refuted(why, off=sorted(off), engines=len(rows))
    return proved(f"{len(rows)} engines are right when replayed from contexts of their own", engines=len(rows))


def empty_inputs(evidence: Evidence) -> Decision:
    text = [name for name, _ in _verdicts(evidence) if name.endswith(": text")]
    if not text:
        return engines_text_missing(evidence)
    return proved("the text graph ran without past tokens, and its results were right", engines=text)


def engines_text_missing(evidence: Evidence) -> Decision:
    wrong = [
        str(evidence.error(f"{name}: engines").get("message", ""))
        for name, step in evidence.named("engines")
        if not step.ok and "'text'" in str(evidence.error(f"{name}: engines").get("message", ""))
    ]
    return refuted("; ".join(wrong)) if wrong else untested("no engine of the text graph was compared")


def half_precision_kept(evidence: Evidence) -> Decision:
    """The builder compares TensorRT's network with the graph's types, and refuses one that lost them (PRECISION)."""
    asked = [name for name in HALVES if name in evidence.request.precisions]
    lost = [name for name in asked if Code.PRECISION in str(evidence.error(f"{name}: engines"))]
    built = [name for name in asked if evidence.ok(f"{name}: engines")]
    if lost:
        return refuted("; ".join(evidence.missing(f"{name}: engines") for name in lost), lost=lost)
    if not built:
        return untested("no engine in half precision was built")
    return proved(f"TensorRT's network computes in the graph's types: {', '.join(built)}", built=built)


def int8_builds(evidence: Evidence) -> Decision:
    name = "int8: engines"
    if "int8" not in evidence.request.precisions or not evidence.ok("int8: build"):
        return untested(evidence.missing("int8: build"))
    if not evidence.ok(name):
        return _failed(evidence, name)
    return proved("TensorRT's parser took the int8 graphs, and their engines were built")


def cuda_loads_bf16(evidence: Evidence) -> Decision:
    name = "bf16: bench"
    if not evidence.ok(name):
        return untested(evidence.missing(name))
    output = evidence.output(name)
    if CUDA in output.get("backends", {}):
        return proved("ONNX Runtime CUDA ran every graph of the bf16 bundle")
    why = output.get("refused", {}).get(CUDA)
    return refuted(str(why["message"]), code=why["code"]) if why else untested("ONNX Runtime CUDA was not asked")


def miniworld_captions(evidence: Evidence) -> Decision:
    return _like_the_reference(evidence, TENSORRT)


def miniworld_captions_cuda(evidence: Evidence) -> Decision:
    return _like_the_reference(evidence, CUDA)


def _like_the_reference(evidence: Evidence, backend: str) -> Decision:
    name = f"{MINIWORLD}: bench"
    if not evidence.ok(name):
        return untested(evidence.missing(name))
    output = evidence.output(name)
    found = output.get("backends", {}).get(backend, {}).get("beside_reference")
    if not found:
        why = output.get("refused", {}).get(backend, {}).get("message", "nothing to compare with")
        return untested(f"{backend} did not run the mini-world: {str(why).splitlines()[-1].strip()}")
    least = min(found["min_cosine"].values(), default=0.0)
    text = (
        f"{found['captions_equal']} of {found['captions']} captions are equal, least cosine of an embedding {least:.6f}"
    )
    right = found["captions_equal"] == found["captions"] and least >= CAPTION_COSINE
    return proved(text, **found) if right else refuted(text, **found)


def miniworld_keyframes(evidence: Evidence) -> Decision:
    name = f"{MINIWORLD}: bench"
    backends = evidence.output(name).get("backends", {})
    rows = {each: backends.get(each, {}).get("beside_reference") or {} for each in (TENSORRT, CUDA)}
    rows = {backend: row for backend, row in rows.items() if "keyframes_equal" in row}
    if not rows:
        return untested(evidence.missing(name))
    text = ", ".join(
        f"{backend} chose the same frames in {row['keyframes_equal']} of {row['captions']} clips"
        for backend, row in rows.items()
    )
    same = all(row["keyframes_equal"] == row["captions"] for row in rows.values())
    return proved(text, **rows) if same else refuted(text, **rows)


def attention_is_fused(evidence: Evidence) -> Decision:
    graphs = _profiled(evidence)
    vision = graphs.get("vision")
    if vision is None:
        return untested(evidence.missing("profile: tensorrt"))
    fused = [
        row["name"]
        for row in vision["layers"]
        if any(word in f"{row['name']} {row['detail']}".lower() for word in FUSED)
    ]
    if fused:
        return proved(f"{len(fused)} layers of 'vision' are fused attention", layers=fused[:5])
    return refuted("no layer of 'vision' names fused attention", layers=[row["name"] for row in vision["layers"][:5]])


def tf32_keeps_cosine(evidence: Evidence) -> Decision:
    found = evidence.output("tf32")
    if not found:
        return untested(evidence.missing("tf32"))
    rows = {name: row["tf32"] for name, row in found.items() if isinstance(row, dict)}
    broken = {name: row["problem"] for name, row in rows.items() if "problem" in row}
    least = min((row["min_cosine"] for row in rows.values() if "min_cosine" in row), default=None)
    if least is None:
        return untested("; ".join(broken.values()) or "no graph was measured")
    text = f"least cosine {least:.6f}, at least {found['limit']} is claimed"
    if broken:
        text = f"{text}; {'; '.join(broken.values())}"
    return proved(text, **rows) if least >= found["limit"] and not broken else refuted(text, **rows)


def fp16_overflows(evidence: Evidence) -> Decision:
    found = evidence.output("fp16 overflow")
    if not found:
        return untested(evidence.missing("fp16 overflow"))
    text = f"largest value {found['largest']:.4g} in '{found['value']}', fp16 ends at {found['limit']:g}"
    if not found["means_something"]:
        return untested(
            f"seeded weights say nothing ({text}): --weights published, or FOLDER of the published ones", **found
        )
    return proved(text, **found) if found["largest"] > found["limit"] else refuted(text, **found)


def engine_rows(output: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Engines in the output of ``flamest-export engines``."""
    return list(output.get("plans", ()))


def _verdicts(evidence: Evidence) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Verdicts on engines that are right, by "PRECISION: GRAPH"."""
    for precision, step in evidence.named("engines"):
        for row in engine_rows(step.output):
            verdict = row.get("verdict")
            if verdict and not verdict["wrong"]:
                yield f"{precision}: {row['graph']}", verdict


def _profiled(evidence: Evidence) -> Mapping[str, Any]:
    found = evidence.output("profile: tensorrt").get("backends", {}).get(TENSORRT, {}).get("graphs", {})
    return found if isinstance(found, dict) else {}


def _failed(evidence: Evidence, name: str) -> Decision:
    """A step that ran and failed refutes its claim; one that did not run leaves it open."""
    step = evidence.steps.get(name)
    if step is None or step.skipped or step.ok:
        return untested(evidence.missing(name))
    return refuted(evidence.missing(name))


REPORT = "attach the report to an issue"
ENGINE_CLAIMS = (
    Claim("driver_fits", "The driver is new enough for the installed CUDA packages.", driver_fits,
          "install a newer driver, or the packages for CUDA 12: make gpu-check CUDA=12",
          required=True),
    Claim("one_layer", "TensorRT builds and runs an engine of one layer here.", one_layer,
          f"{REPORT}; nothing else of TensorRT will work", required=True, in_dry=True),
    Claim("exports", "Every precision exports within its limits.", exports, REPORT, required=True, in_dry=True),
    Claim("engines_right", "Every engine equals its ONNX graph at every shape of its use.", engines_right,
          f"{REPORT}; until then use --backend onnxruntime-cuda on this GPU", required=True, in_dry=True),
    Claim("cuda_graphs_right", "Engines stay right when CUDA graphs are replayed, one context per captured graph.",
          with_cuda_graphs, f"{REPORT}; engines run without CUDA graphs, which is slower and right", in_dry=True),
    Claim("empty_inputs", "Inputs without elements work, each at an address of its own (the text graph without past).",
          empty_inputs, REPORT, required=True, in_dry=True),
    Claim("half_precision_kept", "Half precision reaches the engine.", half_precision_kept, REPORT, required=True,
          in_dry=True),
    Claim("int8_builds", "TensorRT takes the int8 form.", int8_builds,
          f"{REPORT}; use bf16 or fp16 on this GPU", in_dry=True),
    Claim("cuda_loads_bf16", "ONNX Runtime CUDA loads the bf16 graphs.", cuda_loads_bf16,
          "export fp16 where ONNX Runtime CUDA is to run: --precision fp16"),
    Claim("miniworld_tensorrt", "The mini-world's captions and embeddings on TensorRT are those of the CPU.",
          miniworld_captions, REPORT, required=True, in_dry=True),
    Claim("miniworld_cuda", "The mini-world's captions and embeddings on ONNX Runtime CUDA are those of the CPU.",
          miniworld_captions_cuda, REPORT, required=True),
    Claim("miniworld_keyframes", "Keyframes chosen on the GPU are those of the CPU on the mini-world's clips.",
          miniworld_keyframes, "noise of 1e-6 changes the keyframes of 1 to 4 % of clips; for more, attach the report",
          in_dry=True),
    Claim("attention_is_fused", "TensorRT fuses the attention of 'vision', scaled before its first product.",
          attention_is_fused, f"{REPORT} with the folder profile-tensorrt: unfused attention costs speed, no result"),
    Claim("tf32_keeps_cosine", "With TF32 the fp32 graphs keep a cosine of 0.9999.", tf32_keeps_cosine,
          "build engines with --no-tf32"),
    Claim("fp16_overflows", "BLIP's image encoder leaves the range of fp16.", fp16_overflows,
          "fp16 may serve for 'vision' too: tell us in an issue"),
)  # fmt: skip
