"""Timelines of long videos: accuracy, memory and speed.

    python -m bench.timeline [--part accuracy|memory] [--tune]

Videos of eight actions of the mini-world, each done two to five times, two of the eight of classes that the model does
not know (bench/timeline_videos.py). *Accuracy*: of frames, and F1 of segments at an IoU of 0.5, of three answers: one
for the whole video, as ``predict`` gives it; each window its own; windows smoothed. Seeds 0 to 4; the smoothing was
chosen on seeds 100 to 103 (``--tune`` shows the choice). *Memory*: peak of the process tree (resident, summed over its
processes, sampled) and seconds for a second of video, at 1, 5 and 20 minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from flamest.agent.predict import predict_videos
from flamest.agent.timeline.smoothing import Smoothing
from flamest.agent.timeline.windows import window_plan
from flamest.experiments.miniworld.videos import render_recording
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.bundle.packaged import miniworld_bundle

from .feature_sets import FOLDER, miniworld
from .record import RESULTS, store_result
from .timeline_figures import frame_accuracy, segment_f1, timeline, true_stretches
from .timeline_videos import Stretch, compose, model_of, video_of, windows_of

SEEDS, TUNING = range(5), range(100, 104)
MINUTES = (1, 5, 20)
PLAN = (2.0, 1.0)  # the command's defaults: window and stride, seconds
SAMPLE_S = 0.1
WITHIN = 2.776  # Student's t for 95 % with 5 seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER / "timeline")
    parser.add_argument("--part", choices=("accuracy", "memory"), action="append")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.tune:
        tune(options.folder)
        return
    path = RESULTS / "timeline.json"
    figures = {} if not path.exists() else json.loads(path.read_text())
    figures = {part: figures[part] for part in ("accuracy", "memory") if part in figures}
    for part in options.part or ("accuracy", "memory"):
        figures[part] = {"accuracy": accuracy, "memory": memory}[part](options.folder)
        print(json.dumps(figures[part], indent=2))
        print(f"stored in {store_result('timeline', figures)}")


def accuracy(folder: Path) -> dict[str, Any]:
    features, rows = miniworld(), list[dict[str, Any]]()
    plan, opening = window_plan(*PLAN), OpeningOptions(threads=1)
    for seed in SEEDS:
        model = model_of(folder, features, seed)
        video, stretches = video_of(folder, features.labels, seed)
        truth, end = true_stretches(stretches, model), stretches[-1].end_s
        [whole] = predict_videos(miniworld_bundle(), model, [video], opening=opening)
        windows = windows_of(folder, video, *PLAN)
        answers = {
            "whole": [Stretch(whole.answer, 0.0, end)],
            "windows": timeline(model, windows, None, plan),
            "smoothed": timeline(model, windows, Smoothing(), plan),
        }
        figures = {
            name: {
                "frame_accuracy": frame_accuracy(found, truth),
                "segment_f1": segment_f1(found, truth),
                "events": len(found),
            }
            for name, found in answers.items()
        }
        rows.append({"seed": seed, "seconds": end, "true_events": len(truth), "whole_answer": whole.answer, **figures})
        print(json.dumps(rows[-1]), flush=True)
    return {"window_s": PLAN[0], "stride_s": PLAN[1], "mean_and_95": _means(rows), "seeds": rows}


def _means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean over seeds and half of its 95 % interval."""
    made: dict[str, Any] = {}
    for answer, figure in itertools.product(("whole", "windows", "smoothed"), ("frame_accuracy", "segment_f1")):
        values = [row[answer][figure] for row in rows]
        half = WITHIN * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        made.setdefault(answer, {})[figure] = [round(float(np.mean(values)), 3), round(half, 3)]
    return made


def tune(folder: Path) -> None:
    """Print the settings in the order of accuracy plus F1, over windows of 2 s with two strides, on tuning seeds."""
    features = miniworld()
    found: list[tuple[float, Smoothing]] = []
    grid = itertools.product((0.5, 1.0, 2.0, 4.0, 8.0, 16.0), (2.0, 4.0, 6.0), (0.25, 0.5, 1.0), (3.0, 10.0, 30.0))
    for settings in (Smoothing(*each) for each in grid):
        scores = []
        for seed, stride in itertools.product(TUNING, (1.0, 0.5)):
            model = model_of(folder, features, seed)
            video, stretches = video_of(folder, features.labels, seed)
            truth, plan = true_stretches(stretches, model), window_plan(2.0, stride)
            events = timeline(model, windows_of(folder, video, 2.0, stride), settings, plan)
            scores.append(frame_accuracy(events, truth) + segment_f1(events, truth))
        found.append((float(np.mean(scores)), settings))
    for score, settings in sorted(found, key=lambda each: -each[0])[:12]:
        print(f"{score:.3f} {settings}")


def memory(folder: Path) -> list[dict[str, Any]]:
    features, rows = miniworld(), list[dict[str, Any]]()
    model_of(folder, features, SEEDS[0])
    for minutes in MINUTES:
        video = folder / f"minutes-{minutes}.mp4"
        if not video.exists():
            keys = [key for stretch in compose(features.labels, SEEDS[0], minutes) for key in stretch]
            building = video.with_suffix(".part.mp4")
            render_recording(building, keys[: round(60 * minutes / 2.9)])
            building.rename(video)
        rows.append(_one_run(folder, video))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _one_run(folder: Path, video: Path) -> dict[str, Any]:
    """Run the command, and sample the memory of its processes."""
    model = folder / f"model-{SEEDS[0]}.safetensors"
    command = [sys.executable, "-m", "flamest.agent", "predict", "--timeline", str(video), "--json"]
    command += ["--bundle", "miniworld", "--model", str(model), "--threads", "1"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        peaks = [0]

        def watch() -> None:
            while process.poll() is None:
                peaks.append(sum(map(_resident, _tree(process.pid))))
                time.sleep(SAMPLE_S)

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stdout is not None
        answer = json.loads(process.stdout.read().splitlines()[-1])
        watcher.join()
    seconds, [made] = time.monotonic() - began, answer["timelines"]
    return {
        "minutes": round(made["length_s"] / 60, 2),
        "windows": made["windows"],
        "peak_mb": round(max(peaks) / 1e6, 1),
        "seconds": round(seconds, 1),
        "seconds_per_second_of_video": round(seconds / made["length_s"], 3),
        "load": os.getloadavg()[0],
    }


def _tree(pid: int) -> list[int]:
    """Return the process and those below it."""
    found = [pid]
    for each in found:
        try:
            children = Path(f"/proc/{each}/task/{each}/children").read_text().split()
            threads = Path(f"/proc/{each}/task").iterdir()
            for thread in threads:
                children += (thread / "children").read_text().split()
        except OSError:
            continue
        found += sorted({int(child) for child in children} - set(found))
    return found


def _resident(pid: int) -> int:
    """Return the proportional resident memory of a process, bytes: shared pages count once over all processes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
