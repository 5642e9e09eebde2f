"""Run gpu-check with stand-ins for TensorRT and a GPU: ``make gpu-check-dry``, and the test of it.

    python tests/tensorrt_rig/dry_gpu_check.py FOLDER [options of flamest-export gpu-check]

The steps, claims and pages are those of a GPU machine. Engines are computed by ONNX Runtime's CPU provider: wrong ones
are caught, right ones pass, and nothing is learned about speed. The report says so in every place.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rig import Rig

VERSION = "11.4"
TINY = ("--weights", "random:tiny", "--repeats", "3", "--clips", "2")
BATCHES = ("--batch", "1", "--batch", "3")


def command(folder: Path, *options: str) -> list[str]:
    """The command of a dry run whose report goes to ``folder``."""
    program = [sys.executable, "-m", "flamest.export", "gpu-check", "--dry"]
    return [*program, "--results", str(folder), *TINY, *options]


def environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """In which a GPU answers and TensorRT builds; with an engine cache of its own in ``folder``."""
    made = Rig(VERSION).environment(driver=True, scripted=True)
    return {**made, "XDG_CACHE_HOME": str(folder / "cache"), **(extra or {})}


def main(words: Sequence[str]) -> int:
    folder = Path(words[0])
    if missing := Rig(VERSION).missing:
        sys.stderr.write(f"{missing}\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    options = words[1:] or ("--precision", "fp32", "--precision", "bf16", "--precision", "fp16")
    batches = () if "--batch" in options else BATCHES
    return subprocess.run(command(folder, *batches, *options), env=environment(folder), check=False).returncode


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    sys.exit(main(sys.argv[1:]))
