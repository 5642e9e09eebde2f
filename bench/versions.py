"""Extraction from file to embedding by this version and by an earlier one, interleaved on one machine.

    python -m bench.versions --before CHECKOUT --clips DIR --bundle fp32=BEFORE,NOW [--bundle int8=BEFORE,NOW]

``--before``: a folder called flamest with the earlier version, such as ``git worktree add …/before/flamest v0.2.0``.
``--bundle``: a name, the bundle that the earlier version exported, and this version's of the same weights (for random
weights, the same ``--weights random:full``). Each version runs in a process of its own, pass after pass in alternation,
so that a busy machine slows both; the ratio of neighbouring passes counts. ``together``: all clips as a silo extracts
them. ``alone``: one clip after the other, so that the stages do not overlap.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.similarity import cosine
from flamest.runtime.video import find_video_files

from .record import RESULTS, store_result

PROGRAM = Path(__file__).with_name("versions_run.py")
HERE = Path(__file__).resolve().parents[1]
VERSIONS = ("before", "now")
MODES = ("together", "alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--bundle", action="append", required=True, metavar="NAME=BEFORE,NOW")
    parser.add_argument("--most", type=int, default=8, help="number of clips, spread evenly over their names")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="versions", help="name of the result, bench/results/NAME.json")
    arguments = parser.parse_args()
    if arguments.before.resolve().name != "flamest":
        raise SystemExit(f"{arguments.before} is not called flamest, so it cannot be imported under that name")
    found = find_video_files(arguments.clips)
    clips = found[:: max(1, len(found) // arguments.most)][: arguments.most]
    checkouts = {"before": arguments.before.resolve(), "now": HERE}
    rows = {}
    for given in arguments.bundle:
        name, _, bundles = given.partition("=")
        folders = dict(zip(VERSIONS, map(Path, bundles.split(",")), strict=True))
        check_weights(folders)
        rows[name] = measure(checkouts, folders, clips, arguments.repeats)
        print(json.dumps({name: rows[name]}, indent=2), flush=True)
    figures = {
        "what": f"{len(clips)} real clips, {arguments.repeats} passes of each version, interleaved; ms a clip",
        "commits": {version: commit(checkout) for version, checkout in checkouts.items()},
        "rows": rows,
        "limit": roofline(),
    }
    print(f"stored in {store_result(arguments.name, figures)}")


def check_weights(bundles: dict[str, Path]) -> None:
    """Stop unless both bundles were made from the same weights."""
    weights = [
        {name: source.weights_sha256 for name, source in open_bundle(folder).manifest.sources.items()}
        for folder in bundles.values()
    ]
    if weights[0] != weights[1]:
        raise SystemExit(f"{' and '.join(map(str, bundles.values()))} are of different weights")


def measure(
    checkouts: dict[str, Path], bundles: dict[str, Path], clips: Sequence[Path], repeats: int
) -> dict[str, Any]:
    """Both versions with their bundles: a warm-up, then ``repeats`` passes of each mode."""
    passes: dict[str, dict[str, list[Any]]] = {mode: {version: [] for version in VERSIONS} for mode in MODES}
    with contextlib.ExitStack() as stack:
        running = {
            version: stack.enter_context(started(checkouts[version], bundles[version], clips)) for version in VERSIONS
        }
        first = {version: ask(running[version], "together") for version in VERSIONS}
        for number in range(repeats):
            order = VERSIONS if number % 2 else VERSIONS[::-1]
            for mode in MODES:
                for version in order:
                    passes[mode][version].append(ask(running[version], mode))
    return {
        "precision": first["now"]["precision"],
        "together": compared({v: [each["ms"] for each in passes["together"][v]] for v in VERSIONS}),
        "alone": compared({v: [statistics.median(each["ms"]) for each in passes["alone"][v]] for v in VERSIONS}),
        "stages": stage_rows(passes["alone"]),
        "embeddings": agreement(first["before"]["clips"], first["now"]["clips"]),
    }


@contextlib.contextmanager
def started(checkout: Path, bundle: Path, clips: Sequence[Path]) -> Iterator[subprocess.Popen[str]]:
    """The program of versions_run.py with this checkout's package."""
    other = {} if checkout == HERE else {"PYTHONPATH": str(checkout.parent)}
    process = subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM), str(bundle), *map(str, clips)],
        env={**os.environ, **other},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        imported = read_answer(process)
        if imported != str(checkout):
            raise SystemExit(f"the package was imported from {imported}, expected {checkout}")
        yield process
    finally:
        process.communicate()  # closes its stdin, which ends it


def ask(process: subprocess.Popen[str], mode: str) -> Any:
    assert process.stdin is not None
    process.stdin.write(f"{mode}\n")
    process.stdin.flush()
    return read_answer(process)


def read_answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a version's process ended; its error is above")
    return json.loads(line)


def compared(ms: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of both versions, and how many times faster this one is in neighbouring passes."""
    ratios = [before / now for before, now in zip(ms["before"], ms["now"], strict=True)]
    return {
        **{f"{version}_ms": round(statistics.median(ms[version]), 2) for version in VERSIONS},
        "times_faster": round(statistics.median(ratios), 3),
        "least_and_most": [round(min(ratios), 3), round(max(ratios), 3)],
        "passes_ms": {version: [round(each, 2) for each in ms[version]] for version in VERSIONS},
    }


def stage_rows(passes: dict[str, list[Any]]) -> dict[str, Any]:
    """Per stage, the median clip of each pass."""

    def of(version: str, stage: str) -> list[float]:
        return [statistics.median(clip[stage] for clip in each["stages_ms"]) for each in passes[version]]

    stages = [stage for stage in passes["now"][0]["stages_ms"][0] if max(of("now", stage) + of("before", stage)) > 0]
    return {stage: compared({version: of(version, stage) for version in VERSIONS}) for stage in stages}


def agreement(before: list[Any], now: list[Any]) -> dict[str, Any]:
    """Agreement of the two versions' embeddings, which need not have the same fingerprint."""
    pairs = list(zip(before, now, strict=True))
    same = [pair for pair in pairs if pair[0]["caption"] == pair[1]["caption"]]

    def smallest(part: str, of: list[Any]) -> float | None:
        cosines = [cosine(np.array(a[part], np.float32), np.array(b[part], np.float32)) for a, b in of if a[part]]
        return min(cosines, default=None)

    return {
        "clips": len(pairs),
        "identical": sum(a == b for a, b in pairs),
        "keyframes_equal": sum(a["keyframes_s"] == b["keyframes_s"] for a, b in pairs),
        "captions_equal": len(same),
        "smallest_cosine": {"cnn": smallest("cnn", pairs), "vlm_of_equal_captions": smallest("vlm", same)},
    }


def commit(checkout: Path) -> str:
    found = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def roofline() -> dict[str, Any]:
    """Least time of the networks' arithmetic after the keyframes, at the speed of a square matmul measured now.

    The operations are those that bench/extraction.py counted: 12 caption steps.
    """
    from .extraction import other_peaks
    from .training import gemm_peak

    gflop = json.loads((RESULTS / "extraction.json").read_text())["gflop"]
    peaks = {"fp32": gemm_peak(), **other_peaks()}
    return {
        "gflop": gflop,
        "peak_gflops": {name: round(peak / 1e9, 1) for name, peak in peaks.items()},
        "least_ms": {name: round(sum(gflop.values()) * 1e12 / peak, 1) for name, peak in peaks.items()},
    }


if __name__ == "__main__":
    main()
