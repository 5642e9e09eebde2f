"""The demo as a user runs it: from a wheel, in another folder, with a relative --out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flamest.experiments.miniworld.videos import render_dataset

MOTIONS = ("lifting", "swinging")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel_site(tmp_path_factory, source_copy) -> Path:
    """A folder with FLAMeST installed from its wheel; the other packages are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([*build, "--target", str(folder / "site"), str(source_copy)], check=True, capture_output=True)
    return folder / "site"


def test_the_wheel_brings_the_bundle_of_the_demo(wheel_site):
    kept = (ROOT / "runtime" / "bundle" / "miniworld.zip").read_bytes()
    assert (wheel_site / "flamest" / "runtime" / "bundle" / "miniworld.zip").read_bytes() == kept


@pytest.fixture(scope="module")
def no_pytorch(tmp_path_factory) -> Path:
    """A folder whose packages torch, torchvision and transformers cannot be imported, as where they are missing."""
    folder = tmp_path_factory.mktemp("no-pytorch")
    for package in ("torch", "torchvision", "transformers"):
        (folder / f"{package}.py").write_text("raise ImportError('the demo imports PyTorch')\n")
    return folder


def test_the_demo_runs_from_the_wheel_on_own_clips(wheel_site, no_pytorch, tiny_bundle, tmp_path):
    render_dataset(tmp_path / "clips", groups=4, objects=("ball", "box", "star"), motions=MOTIONS, seed=3, processes=1)
    broken = tmp_path / "clips" / "ball_lifting" / "broken.mp4"
    broken.write_bytes(b"not a video")
    with (tmp_path / "clips" / "labels.csv").open("a") as labels:
        labels.write("ball_lifting/broken.mp4,ball_lifting,g00\n")

    arguments = [
        "--videos",
        "clips",
        "--bundle",
        str(tiny_bundle),
        "--out",
        "out",
        "--silos",
        "2",
        "--rounds",
        "2",
        "--json",
    ]
    code = "import flamest, sys; from flamest.experiments.demo_cli import main; print(flamest.__file__); main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(no_pytorch), str(wheel_site)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith(str(wheel_site))
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["classes"], result["rounds"], len(result["round_accuracy"])) == (6, 2, 2)
    assert result["bytes_per_silo_round"] > 4 * 1_500_000  # the head both ways is 12 MB
    for key in ("accuracy", "local_accuracy", "centralised_accuracy", "metadata_accuracy"):
        assert 0.0 <= result[key] <= 1.0
    assert len(result["prediction"]["labels"]) == 5
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in report
    assert result["prediction"]["truth"] in report
    numbers = [line.split(".")[0] for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert "extraction in the silos: " in done.stderr
    assert "rounds: 2/2 rounds" in done.stderr
    assert f"The clips are rendered; the networks are those of the bundle {tiny_bundle}" in report
    assert result["fingerprint"] in report
    assert (result["wrong_prediction"] is None) == (result["wrong_clips"] == 0)
