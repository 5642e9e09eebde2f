"""The report of gpu-check as a page of Markdown, for a person. In a dry run every figure on it is marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SIGNS = {"proved": "proved", "refuted": "**REFUTED**", "not tested": "not tested"}


def render_page(report: Mapping[str, Any]) -> str:
    """The page: result, claims, speed, differences, steps, and at the end what to do next."""
    lines = [*_head(report), *_claims(report), *_speed(report), *_results(report), *_steps(report), *_summary(report)]
    return "\n".join(lines) + "\n"


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    gpu = machine["gpu"] or {"name": "none", "compute_capability": "", "memory_mb": 0}
    yield f"# {report['title']}"
    yield ""
    if report["dry"]:
        yield "> **DRY RUN.** Every number below is marked (dry): it is a stand-in's, and says nothing about a GPU."
        yield ""
    state = "" if report["finished"] else " The run was interrupted: it is not finished."
    yield f"Result: **{'ok' if report['ok'] else 'NOT ok'}**{_dry(report)}.{state}"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine["versions"].items()))
    yield f"- GPU: {gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_mb']} MB"
    yield f"- driver {machine['driver'] or 'unknown'}, CUDA {machine['cuda'] or 'none'}; {versions or 'no versions'}"
    yield f"- processor: {machine['processor']}, {machine['cores']} cores; Python {machine['python']}"
    yield f"- flamest {report['flamest']}, {report['measured']}, weights {report['weights']}"
    for name, why in report["left_out"].items():
        yield f"- {name} is left out: {why}"
    yield ""


def _claims(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Claims"
    yield ""
    yield "A required claim that is refuted makes the report not ok."
    yield ""
    yield "| claim | verdict | why |"
    yield "|---|---|---|"
    for row in report["claims"]:
        required = " (required)" if row["required"] else ""
        yield f"| {row['statement']}{required} | {_SIGNS[row['verdict']]} | {_cell(row['why'])}{_dry(report)} |"
    yield ""


def _summary(report: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "## Summary, and what to do next"
    yield ""
    yield "| verdict | claims | |"
    yield "|---|---|---|"
    for verdict, sign in _SIGNS.items():
        keys = [row["claim"] for row in report["claims"] if row["verdict"] == verdict]
        yield f"| {sign} | {len(keys)}{_dry(report)} | {', '.join(keys)} |"
    yield ""
    for line in report["next"]:
        yield f"- {_cell(line)}"


def _speed(report: Mapping[str, Any]) -> Iterator[str]:
    """Clips a second from prepared frames, by batch: each backend, and PyTorch."""
    said = {step["name"]: step["said"] for step in report["steps"]}
    columns = {
        "TensorRT": said.get("prepared: tensorrt", {}).get("batches", {}),
        "ONNX Runtime CUDA": said.get("prepared: onnxruntime-cuda", {}).get("batches", {}),
        "torch.compile bf16": said.get("torch", {}).get("batches", {}),
    }
    batches = sorted({int(batch) for rows in columns.values() for batch in rows})
    if not batches:
        return
    yield f"## Clips a second, from prepared frames{_dry(report)}"
    yield ""
    yield f"| batch | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for batch in batches:
        cells = [_speed_cell(rows.get(str(batch)), _dry(report)) for rows in columns.values()]
        yield f"| {batch} | {' | '.join(cells)} |"
    yield ""
    for name, rows in columns.items():
        yield from _stages(name, rows, _dry(report))


def _speed_cell(row: Mapping[str, Any] | None, dry: str) -> str:
    if row is None:
        return "–"
    if "problem" in row:
        return _cell(row["problem"])[:60]
    memory = row.get("gpu_mb")
    return f"{row['clips_per_second']:.1f}{'' if memory is None else f', {memory:.0f} MB'}{dry}"


def _stages(name: str, rows: Mapping[str, Any], dry: str) -> Iterator[str]:
    ran = {batch: row["stages"] for batch, row in rows.items() if row.get("stages")}
    if not ran:
        return
    stages = list(next(iter(ran.values())))
    yield f"{name}, milliseconds of a clip by stage, p50 / p95{dry}:"
    yield ""
    yield f"| batch | {' | '.join(stages)} |"
    yield "|---" * (len(stages) + 1) + "|"
    for batch, found in ran.items():
        cells = [f"{found[stage]['p50_ms']:.2f} / {found[stage]['p95_ms']:.2f}{dry}" for stage in stages]
        yield f"| {batch} | {' | '.join(cells)} |"
    yield ""


def _results(report: Mapping[str, Any]) -> Iterator[str]:
    """Every precision against fp32 on ONNX Runtime CUDA."""
    compared = report["beside_fp32_cuda"]
    if not compared:
        return
    yield f"## Embeddings and captions against fp32 on ONNX Runtime CUDA{_dry(report)}"
    yield ""
    yield "| bundle and backend | captions equal | least cosine |"
    yield "|---|---|---|"
    for name, row in compared.items():
        cosines = ", ".join(f"{part} {value:.6f}" for part, value in row["min_cosine"].items())
        yield f"| {name} | {row['captions_equal']} of {row['captions']} | {cosines}{_dry(report)} |"
    yield ""


def _steps(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Steps"
    yield ""
    yield "| step | result | seconds |"
    yield "|---|---|---|"
    for step in report["steps"]:
        yield f"| {step['name']} | {_result(step)} | {step['seconds']:.0f}{_dry(report)} |"
    for step in report["steps"]:
        if step["problem"] and step["exit_code"] is not None:
            yield ""
            yield f"`{step['command']}` ended with:"
            yield ""
            yield from (f"    {line}" for line in step["problem"].splitlines()[-12:])


def _result(step: Mapping[str, Any]) -> str:
    if step["exit_code"] is None:
        return _cell(step["problem"])
    return "ok" if step["exit_code"] == 0 else f"**failed**, exit code {step['exit_code']}"


def _cell(text: str) -> str:
    """Text that fits into a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _dry(report: Mapping[str, Any]) -> str:
    return " (dry)" if report["dry"] else ""
