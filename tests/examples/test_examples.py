"""Every example runs as it is, and those of one's own parts stay short."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import flamest as fl
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few separable clips, so that a script takes a moment."""
    random, y = np.random.default_rng(0), np.tile(np.arange(6), 30)
    x = 3 * random.normal(size=(6, 16))[y] + random.normal(size=(len(y), 16))
    path = tmp_path_factory.mktemp("features") / "f.npz"
    fl.Features.from_arrays(x, [f"class-{k}" for k in y], groups=np.arange(len(y)) // 12).save(path)
    return path


def run(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_there_are_a_notebook_and_four_scripts_and_the_readme_lists_them():
    names = [*SCRIPTS, "quickstart.ipynb"]
    assert len(SCRIPTS) >= 4
    text = (EXAMPLES / "README.md").read_text()
    assert [name for name in names if f"[{name}]({name})" not in text] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_on_ones_own_features_and_learns(script, features, monkeypatch, capsys):
    run(script, monkeypatch, str(features))
    out = capsys.readouterr().out
    shown = [float(line.split()[1]) for line in out.splitlines() if line.startswith("accuracy ")]
    shown += [float(line.split("%")[0]) / 100 for line in out.splitlines() if line.split("  ")[0].endswith("%")]
    assert len(shown) >= 2
    assert max(shown) > 0.9
    assert min(shown) > 1 / 6  # chance


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.startswith("own_")])
def test_what_a_researcher_adds_takes_less_than_forty_lines(script):
    assert len((EXAMPLES / script).read_text().splitlines()) < 40


def test_an_encoder_of_ones_own_takes_less_than_forty_lines():
    from flamest.export.encoder.settings import read_encoder

    folder = EXAMPLES / "encoders"
    encoder = read_encoder(folder / "efficientnet.toml")
    assert encoder.module == f"{folder / 'efficientnet.py'}:make"
    assert sum(len(path.read_text().splitlines()) for path in folder.iterdir() if path.is_file()) < 48
    assert all(len(path.read_text().splitlines()) < 40 for path in folder.iterdir() if path.is_file())


def test_a_script_runs_without_arguments(monkeypatch, capsys):
    run("own_head.py", monkeypatch)
    assert "on 50 test clips" in capsys.readouterr().out


def test_the_notebook_runs_and_holds_no_error():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    path = EXAMPLES / "quickstart.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    texts = [text for cell in notebook.cells if cell.cell_type == "code" for text in _outputs(cell)]
    assert any(text.startswith("Run: fedprox, 20 rounds, 4 silos") for text in texts)
    assert any("star_lifting: star_" in text for text in texts)


def _outputs(cell) -> list[str]:
    return [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]


def test_the_committed_notebook_has_no_paths_of_a_machine():
    text = json.dumps(json.loads((EXAMPLES / "quickstart.ipynb").read_text()))
    assert [place for place in ("/home/", "/root/", "/work/", "/Users/") if place in text] == []
