"""``flamest-agent extract`` as on a silo: wall time per clip, and memory of its process tree over the run.

    python -m bench.extract_run --bundle DIR --videos DIR [--most 1000] [--name int8]

The clips are copied into a new folder and extracted into a new store by the command itself. The PSS (memory of a
process, with shared pages divided among its users) of the command and its children is summed once a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flamest.runtime.video import find_video_files

from .record import store_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--most", type=int, default=1000, help="number of clips, spread evenly over their names")
    parser.add_argument("--name", default="bundle", help="name of the result, bench/results/extract_run_NAME.json")
    parser.add_argument("words", nargs="*", help="further arguments of extract, after --")
    arguments = parser.parse_args()
    found = find_video_files(arguments.videos)
    if len(found) < arguments.most:
        print(f"only {len(found)} clips under {arguments.videos}")
    chosen = [found[index * len(found) // arguments.most] for index in range(min(arguments.most, len(found)))]
    figures = measure(arguments.bundle, chosen, arguments.words)
    print(json.dumps(figures, indent=2))
    print(f"stored in {store_result(f'extract_run_{arguments.name}', figures)}")


def measure(bundle: Path, clips: list[Path], words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "videos")
        for number, clip in enumerate(clips):
            copy = folder / clip.parent.name / f"{number}{clip.suffix}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clip, copy)
        command = [sys.executable, "-m", "flamest.agent", "extract", "--bundle", str(bundle.resolve())]
        command += ["--videos", str(folder), "--store", str(Path(scratch, "store.sqlite")), "--json", *words]
        began = time.perf_counter()
        with Path(scratch, "output").open("w+") as output, subprocess.Popen(command, stdout=output) as process:
            samples = []
            while process.poll() is None:
                samples.append(tree_pss_mb(process.pid))
                time.sleep(1.0)
            output.seek(0)
            out = output.read()
        wall = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"extract ended with {process.returncode}: {out}")
    report = json.loads(out.splitlines()[-1])
    steady = samples[len(samples) // 10 :]  # the networks are loaded
    third = max(1, len(steady) // 3)
    return {
        "what": f"extract of {len(clips)} clips, {report['precision']}",
        "clips": len(clips),
        "extracted": report["extracted"],
        "failed": len(report["failed"]),
        "wall_s": wall,
        "ms_per_clip": report["ms_per_clip"],
        "stages_ms": report["stages_ms"],
        "backends": {name: place["where"] for name, place in report["backends"].items()},
        "peak_pss_mb": max(samples),
        "median_pss_mb_by_third": [
            statistics.median(steady[start : start + third]) for start in (0, third, 2 * third) if steady[start:]
        ],
    }


def tree_pss_mb(pid: int) -> float:
    """PSS of a process and all its descendants in MB; a process that has just ended counts 0."""
    total = 0.0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024 / 1e6
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = {child for thread in threads for child in (thread / "children").read_text().split()}
    except (OSError, StopIteration):
        return total
    return total + sum(tree_pss_mb(int(child)) for child in children)


if __name__ == "__main__":
    main()
