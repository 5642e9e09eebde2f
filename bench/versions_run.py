"""One version's side of bench/versions.py: a program that runs with that version on its import path.

It uses what every version has, and not the package ``bench``. Each line of stdin is a mode, each line of stdout the
JSON of its figures: ``together`` extracts all clips as a silo does, ``alone`` one clip after the other. The first line
of stdout is the folder of the package that was imported.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import flamest
from flamest.base.files import sha256_file
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import Extractor, open_extractor


def main() -> None:
    bundle, *paths = map(Path, sys.argv[1:])
    clips = [Clip(path, sha256_file(path)) for path in paths]
    print(json.dumps(str(Path(flamest.__file__).resolve().parent)), flush=True)
    modes = {"together": _together, "alone": _alone}
    with open_extractor(bundle) as extractor:
        for line in sys.stdin:
            print(json.dumps(modes[line.strip()](extractor, clips)), flush=True)


def _together(extractor: Extractor, clips: list[Clip]) -> dict[str, Any]:
    """Wall milliseconds a clip, and the embeddings."""
    began = time.perf_counter()
    done = list(extractor.extract_all(clips))
    ms = (time.perf_counter() - began) * 1e3 / len(clips)
    features = [each.features for each in done]
    if any(each is None for each in features):
        raise SystemExit(f"not extracted: {[str(each.error) for each in done if each.error]}")
    return {
        "ms": ms,
        "precision": extractor.precision,
        "clips": [
            {
                "vlm": each.vlm.tolist(),
                "cnn": each.cnn.tolist(),
                "caption": each.caption.text,
                "keyframes_s": each.keyframe_times_s,
            }
            for each in features
            if each is not None
        ],
    }


def _alone(extractor: Extractor, clips: list[Clip]) -> dict[str, Any]:
    """Wall milliseconds and milliseconds of each stage, of every clip."""
    taken, stages = [], []
    for clip in clips:
        began = time.perf_counter()
        stages.append(extractor.extract(clip).stages_ms)
        taken.append((time.perf_counter() - began) * 1e3)
    return {"ms": taken, "stages_ms": stages}


if __name__ == "__main__":
    main()
