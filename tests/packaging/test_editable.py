"""An editable install, seen from a script outside of the repository: by Python, mypy and pyright."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
SCRIPT = """\
import flamest as fl
from flamest.base.errors import MissingExtra
from flamest.coordinator.rounds import no_such_name

reveal_type(MissingExtra("av", extra="agent").fix)
silos, test = fl.split(fl.load("f.npz"), silos=4, beta=0.6, seed=0)
reveal_type(test)
reveal_type(fl.simulate(silos, test=test, rounds=20, strategy="fedprox", mu=0.01).accuracy)
fl.simulate(silos, strategi="fedprox")
fl.simulat
"""


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an environment ``venv`` that has the editable wheel and nothing else, and a script beside it."""
    folder = tmp_path_factory.mktemp("outside")
    build = "import sys; sys.path.insert(0, 'release'); import backend; print(backend.build_editable(sys.argv[1]))"
    made = run(sys.executable, "-c", build, folder, cwd=ROOT)
    assert made.returncode == 0, made.stderr
    assert run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder).returncode == 0
    site = next((folder / "venv" / "lib").glob("python3*")) / "site-packages"
    with zipfile.ZipFile(folder / made.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(site)
    (folder / "script.py").write_text(SCRIPT)
    return folder


def test_python_finds_files_under_their_real_paths(outside):
    shown = run(outside / "venv" / "bin" / "python", "-c", "import flamest; print(flamest.__file__)", cwd=outside)
    assert shown.stdout.strip() == str(ROOT / "__init__.py"), shown.stderr


def test_pythonpath_comes_before_an_editable_install(outside, tmp_path):
    (tmp_path / "flamest").mkdir()
    (tmp_path / "flamest" / "__init__.py").write_text("mine = True\n")
    shown = subprocess.run(
        [str(outside / "venv" / "bin" / "python"), "-c", "import flamest; print(flamest.mine)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout == "True\n", shown.stderr


def test_mypy_resolves_the_package_outside_the_repository(outside):
    python = outside / "venv" / "bin" / "python"
    words = ("--config-file=", f"--cache-dir={outside / 'cache'}", "--follow-imports=silent", "--python-executable")
    said = run(sys.executable, "-m", "mypy", *words, python, "script.py", cwd=outside).stdout
    assert 'script.py:3: error: Module "flamest.coordinator.rounds" has no attribute "no_such_name"' in said
    assert 'Revealed type is "str"' in said or 'Revealed type is "builtins.str"' in said
    assert 'Revealed type is "flamest.api.features.Features"' in said
    assert 'Revealed type is "float"' in said or 'Revealed type is "builtins.float"' in said
    assert "script.py:10: error" in said


def test_pyright_resolves_the_package_outside_the_repository(outside, monkeypatch):
    pyright = SCRIPTS / "pyright"
    if not pyright.exists() or shutil.which("node") is None:
        pytest.skip("no pyright, or no node to run it")
    found = importlib.util.find_spec("pyright")
    if found is None or not (Path(str(found.origin)).parent / "dist").is_dir():
        pytest.skip("this pyright comes without its program and would fetch it: pip install -U pyright")
    monkeypatch.setenv("PYRIGHT_PYTHON_IGNORE_WARNINGS", "1")  # does not ask for the newest version
    monkeypatch.delenv("PYRIGHT_PYTHON_FORCE_VERSION", raising=False)
    said = run(pyright, "--pythonpath", outside / "venv" / "bin" / "python", "script.py", cwd=outside).stdout
    assert "could not be resolved" not in said
    assert 'script.py:3:40 - error: "no_such_name" is unknown import symbol' in said
    assert 'script.py:5:13 - information: Type of "MissingExtra("av", extra="agent").fix" is "str"' in said
    assert 'script.py:7:13 - information: Type of "test" is "Features"' in said
    assert said.count('.accuracy" is "float"') == 1
    assert 'script.py:9:20 - error: No parameter named "strategi"' in said
    assert 'script.py:10:4 - error: "simulat" is not a known attribute of module "flamest"' in said
