"""One TensorRT version of ``install.py``, and child processes that see it. One interpreter can hold one version."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "build" / "tensorrt"
INSTALL = "python tests/tensorrt_rig/install.py build/tensorrt"


@dataclass(frozen=True)
class Rig:
    """TensorRT's Python packages of one version; ``version`` as in install.py: "10.3", …, or "lean"."""

    version: str

    @property
    def missing(self) -> str:
        """Reason why this version is not installed; empty when it is."""
        folder = FOLDER / self.version
        if (folder / "installed").is_file():
            return ""
        if (folder / "missing").is_file():
            return (folder / "missing").read_text()
        return f"TensorRT {self.version} for tests is not installed: {INSTALL}"

    def environment(self, *, libraries: bool = True, driver: bool = False, scripted: bool = False) -> dict[str, str]:
        """``libraries=False``: as where only the Python packages are installed. ``driver``: with a GPU that answers.

        ``scripted``: a TensorRT that builds engines of stand-in content (``scripted/``).
        """
        folder = FOLDER / self.version
        packages = [*([HERE / "scripted"] if scripted else []), folder / "packages", HERE]
        found = [folder / "libraries", *([FOLDER / "driver" / "libraries"] if driver else [])]
        paths = [*map(str, packages), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if libraries:
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, found))
        return environment

    def python(
        self, code: str, *arguments: object, extra: Mapping[str, str] | None = None, **how: bool
    ) -> subprocess.CompletedProcess[str]:
        """Run ``code`` in a child in which ``import tensorrt`` finds this version; the caller checks its end.

        ``how``: as for ``environment``.
        """
        command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
        environment = {**self.environment(**how), **(extra or {})}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)

    def run_checks(self, file: Path) -> None:
        """Run the tests in ``file`` with this version; ``tensorrt_fakes`` can be imported there. All must pass."""
        options = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=short", "-o", "python_files=checks_*.py"]
        command = [sys.executable, "-m", "pytest", *options, str(file)]
        environment = {**self.environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take ten times the checks
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
        assert done.returncode == 0, f"TensorRT {self.version}\n{done.stdout}\n{done.stderr}"
        assert "skipped" not in done.stdout, f"TensorRT {self.version}\n{done.stdout}"
