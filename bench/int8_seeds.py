"""int8 with ten seeds: every export ends under the limit, with which share of int8, and in how many minutes.

    python -m bench.int8_seeds [--seeds 10] [--clips DIR] [--threads 2] [--name seeds]

Whole exports through the command line: ``random:full:SEED`` for each seed, and the mini-world, calibrated on drawn
clips; with ``--clips`` the mini-world and ``random:full:0`` on these too. Each takes minutes. The result is stored
after each export, and those that it holds already are not repeated. For every graph: the smallest cosine of the
comparison with PyTorch (``gate``), that on clips that were held out, int8's share, and what stays wide.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .record import RESULTS, store_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--clips", type=Path, help="a folder of real clips to calibrate on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="seeds", help="name of the result, bench/results/int8_NAME.json")
    arguments = parser.parse_args()
    name = f"int8_{arguments.name}"
    rows = _stored(name)
    for case, words in _cases(arguments.seeds, arguments.clips):
        if case in rows:
            continue
        rows[case] = _export([*words, "--threads", str(arguments.threads)])
        print(case, json.dumps(rows[case]), flush=True)
        store_result(name, {**_summary(rows), "rows": rows})


def _cases(seeds: int, clips: Path | None) -> Iterator[tuple[str, list[str]]]:
    yield "random:full:0", ["--weights", "random:full:0"]
    if clips is not None:
        yield "random:full:0, own clips", ["--weights", "random:full:0", "--calibration", str(clips)]
    for seed in range(1, seeds):
        yield f"random:full:{seed}", ["--weights", f"random:full:{seed}"]
    yield "miniworld", ["--weights", "miniworld"]
    if clips is not None:
        yield "miniworld, own clips", ["--weights", "miniworld", "--calibration", str(clips)]


def _export(words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "flamest.export", "build", "--backend", "onnx", "--precision", "int8"]
        started = time.monotonic()
        done = subprocess.run(
            [*command, *words, "--json", "--out", f"{folder}/bundle"], stdout=subprocess.PIPE, text=True
        )
        minutes = (time.monotonic() - started) / 60
        said = json.loads(done.stdout.splitlines()[-1])
    if done.returncode:
        return {"exit_code": done.returncode, "minutes": round(minutes, 2), "error": said["error"]}
    return {
        "exit_code": 0,
        "minutes": round(minutes, 2),
        "graphs": {
            graph: {
                "gate": said["parity"][graph]["min_cosine"],
                "held_out": figures["held_out_cosine"],
                "share": figures["share"],
                "share_of_all": figures["share_of_all"],
                "kept": figures["kept"],
            }
            for graph, figures in said["int8"].items()
        },
        "share_of_all": said["int8_share"],
        "chain": {part: cosine["smallest"] for part, cosine in said["chain"]["embeddings"].items()},
    }


def _summary(rows: dict[str, Any]) -> dict[str, Any]:
    good = [row for row in rows.values() if row["exit_code"] == 0]
    graphs = [figures for row in good for figures in row["graphs"].values()]
    return {
        "exports": len(rows),
        "ended_in_a_bundle": len(good),
        "smallest_gate_cosine": min((figures["gate"] for figures in graphs), default=None),
        "smallest_chain_cosine": min((cosine for row in good for cosine in row["chain"].values()), default=None),
        "smallest_held_out_cosine": min((figures["held_out"] for figures in graphs), default=None),
        "smallest_share_of_all": min((row["share_of_all"] for row in good), default=None),
        "smallest_share_of_a_graph": min((figures["share"] for figures in graphs), default=None),
        "most_minutes": max((row["minutes"] for row in rows.values()), default=None),
    }


def _stored(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())["rows"]) if path.exists() else {}


if __name__ == "__main__":
    main()
