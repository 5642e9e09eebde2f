"""``flamest-export gpu-check``: decide every claim about this machine's GPU, and write one report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.errors import DataError, UsageError
from ...base.options import JsonOption


@command
def gpu_check(
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Folder for the report; bench/results in a checkout.")
    ] = Path("bench/results"),
    weights: Annotated[
        str,
        typer.Option(
            metavar="SRC",
            help="As for the export; seeded weights of the full size when not given. With published ones the claim "
            "about fp16's range is decided too.",
        ),
    ] = "random:full",
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", help="May be given several times; fp32, bf16, fp16 and int8 when not given."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Runs of each graph.")] = 30,
    clips: Annotated[int, typer.Option(min=1, help="Clips through the whole chain.")] = 16,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch",
            min=1,
            metavar="N",
            help="Clips in one run, for the speed at each; may be given several times. 1, 2, 4, … 128 when not given.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="FOLDER",
            help="Keep bundles, engines and finished steps there: run the command again to continue an interrupted "
            "run. About 6 GB for the full size.",
        ),
    ] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            "--bundle",
            metavar="PRECISION=DIR",
            help="A bundle of that precision which was exported before, elsewhere too: it is copied and not exported "
            "here. May be given several times.",
        ),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            metavar="NAME",
            help="Run this step only, and those that it needs; may be given several times. A wrong name lists all.",
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option("--dry", help="Against stand-ins of TensorRT and a GPU, to try the steps: make gpu-check-dry."),
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Decide every claim about TensorRT and this machine's NVIDIA GPU, and write one report to send back.

    The first lines say how many steps there are and how long they may take. Bundles are exported in every precision,
    engines built and compared with their ONNX graphs, and TensorRT, ONNX Runtime CUDA and PyTorch measured at batch 1
    to 128, from prepared frames and from files. A step that fails does not stop the others.

    The report is a page for you (gpu-check-GPU-DATE.md) and the same as JSON. Each claim is proved, refuted, or not
    tested with the reason; the page ends with what to do next. It names neither host nor user: attach both files to an
    issue. Without a GPU, or where a package is missing, the command ends at once (exit code 78). When a step failed or
    a required claim was refuted the report is there all the same, and the exit code is 65.
    """
    from ..gpu_check.check import check_gpu
    from ..gpu_check.plan import BATCHES, PRECISIONS, GpuCheckRequest

    request = GpuCheckRequest(
        results,
        weights,
        tuple(precision or PRECISIONS),
        repeats,
        clips,
        tuple(batch or BATCHES),
        dry,
        work,
        ready_bundles(bundle or ()),
        only=tuple(step or ()),
    )
    path, report = check_gpu(request, (lambda text: None) if as_json else print)
    page = path.with_suffix(".md")
    if not as_json:
        show_claims(report)
    if not report["ok"]:
        wrong = ", ".join((*report["refuted"], *report["failed"], *report["refused"]))
        raise DataError(
            f"gpu-check: not everything is right ({wrong}). The report is {page}, and {path.name} next to it",
            fix="attach both files to an issue; the page says what to do next, 'problem' of a step holds its output",
            code="gpu_check_failed",
        )
    if not as_json:
        print(f"no step failed, no required claim was refuted: {page}")
    counts = [row["verdict"] for row in report["claims"]]
    return {
        "file": str(path),
        "page": str(page),
        "ok": True,
        "dry": report["dry"],
        "claims": {verdict: counts.count(verdict) for verdict in ("proved", "refuted", "not tested")},
    }


def ready_bundles(words: Sequence[str]) -> dict[str, Path]:
    """From ``bf16=DIR``; raises UsageError for another form."""
    found = {}
    for word in words:
        precision, equals, folder = word.partition("=")
        if not (precision and equals and folder):
            raise UsageError(
                f"--bundle {word}: expected PRECISION=DIR",
                fix="flamest-export gpu-check --precision bf16 --bundle bf16=DIR",
            )
        found[precision] = Path(folder)
    return found


def show_claims(report: dict[str, Any]) -> None:
    print(f"\n{report['title']}")
    for row in report["claims"]:
        print(f"  {row['verdict']:10}  {row['statement']}\n              {' '.join(row['why'].split())}")
