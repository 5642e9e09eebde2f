"""Fixtures that tests of several folders share: a tiny bundle, a federation on this machine, TensorRT's classes.

The bundle is exported once per run, by the command itself. The federation has real certificates, a real server on
loopback, and real connections.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # some tests import onnxruntime before flamest
# Tests run side by side, and their networks are tiny: threads that wait for each other take the cores from other tests.
os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"})
# A shell starts what it puts into the background with SIGINT ignored, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
LABELS = ["fall", "run", "walk"]
# They run first: one that began last would leave the other processes of a run idle.
LONG_FILES = (
    "tests/docs/test_commands.py",
    "tests/export/cli/test_engines.py",
    "tests/experiments/test_demo.py",
    "tests/export/precision/test_half_form.py",
    "tests/export/test_older_form.py",
    "tests/export/gpu_check/test_dry_run.py",
    "tests/coordinator/serving/test_floods.py",
    "tests/export/precision/test_tensorrt_form.py",
    "tests/export/precision/test_bundles.py",
    "tests/export/networks/test_networks.py",
    "tests/export/weights/test_hub_downloads.py",
    "tests/export/test_packaged.py",
    "tests/experiments/paper/test_extraction.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, in their order."""
    places = {str(ROOT / name): place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


class Federation:
    """Authority and silos with certificates in a folder, and at most one server at a time, in a thread."""

    def __init__(self, folder: Path, silos: tuple[str, ...], **run: Any) -> None:
        from flamest.coordinator.admin.authority import init_federation
        from flamest.coordinator.admin.config_template import render_config_template

        self.folder = folder / "federation"
        self.silo_folder = folder / "silos"
        self.config = self.folder / "coordinator.toml"
        run = {"inputs": 6, "hidden": [5], "rounds": 3, "min_silos": 1, "deadline_s": 60.0, **run}
        untrained = {"norm_times": 0, "quarantine_after": 0}  # as the updates are that tests send
        run = {**untrained, **run}
        text = render_config_template(LABELS, "fingerprint", recipe="paper").replace("0.0.0.0:7443", "127.0.0.1:0")
        for key, value in run.items():
            line = f"{key} = {str(value).lower() if isinstance(value, bool) else value}"
            text, found = re.subn(rf"^(# )?{key} = .*$", line, text, count=1, flags=re.MULTILINE)
            assert found, key
        init_federation(self.folder, ["127.0.0.1", "localhost"], text)
        for name in silos:
            self.enrol(name)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def enrol(self, name: str) -> None:
        from flamest.agent.identity import make_request
        from flamest.coordinator.admin.authority import add_silo

        made = make_request(name, self.silo_folder / name)
        add_silo(self.folder, name, made.csr_path.read_bytes())

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def address(self) -> str:
        return (self.state / "address").read_text().strip()

    def settings(self) -> Any:
        from flamest.coordinator.settings import load_coordinator_settings

        return load_coordinator_settings(self.config)

    def start(self, *, once: bool = False) -> None:
        from flamest.base.process import Shutdown
        from flamest.coordinator.serving.server import serve

        self._shutdown = Shutdown()

        def work() -> None:
            try:
                self.served = serve(self.settings(), self._shutdown, once=once)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work)
        self._thread.start()
        until = time.monotonic() + 10
        while not (self.state / "address").exists():
            if not self._thread.is_alive() or time.monotonic() > until:
                self.stop()
                raise AssertionError("the server did not start")
            time.sleep(0.005)

    def join(self) -> None:
        """Wait until the server has ended by itself."""
        assert self._thread is not None
        self._thread.join(30)
        self.stop()

    def stop(self) -> None:
        if self._thread is not None:
            self._shutdown.request()
            self._thread.join(20)
            assert not self._thread.is_alive()
            self._thread = None
            if self._error is not None:
                error, self._error = self._error, None
                raise error

    def connection_settings(self, name: str, *, address: str | None = None) -> Any:
        from flamest.agent.client import ConnectionSettings

        given = self.folder / "silos" / name
        key = self.silo_folder / name / f"{name}.key"
        return ConnectionSettings(address or self.address, given / "ca.pem", given / "silo.pem", key)

    def client(self, name: str, *, give_up_after_s: float = 5.0) -> Any:
        from flamest.agent.client import Backoff, CoordinatorClient

        return CoordinatorClient.open(
            self.connection_settings(name),
            retry=Backoff(give_up_after_s=give_up_after_s, first_s=0.02, longest_s=0.1, spread_s=0.2),
        )

    def rounds(self) -> list[dict[str, Any]]:
        from flamest.coordinator.admin.status import history_of

        return history_of(self.settings())


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache folder of this test process and its children: the user's is neither read nor written."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    """Undo what a command in this process set up, so that the next test sees log records again."""
    logger = logging.getLogger("flamest")
    before = logger.level, logger.propagate, logger.handlers[:]
    yield
    level, logger.propagate, logger.handlers[:] = before
    logger.setLevel(level)


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of the files that are committed or about to be; a build in it meets no traces of earlier ones."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: git knows no files here")
    folder = tmp_path_factory.mktemp("source") / "flamest"
    files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(files, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_bundle(run_folder: Path) -> Path:
    """Bundle of ``--blip random:tiny --slow random:tiny``. Read it only; to change it, change a copy.

    The first test process of a run that asks for it exports it, and others wait.
    """
    folder = run_folder / "export" / "tiny"
    said = folder.parent / "said.json"
    source = "random:tiny"
    command = [sys.executable, "-m", "flamest.export", "--backend", "onnx", "--blip", source, "--slow", source]
    # One thread: for tiny networks, synchronising threads costs more than the work.
    options = ["--threads", "1", "--out", str(folder), "--json"]
    with (run_folder / "export.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            folder.parent.mkdir(exist_ok=True)
            done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            said.write_text(done.stdout.splitlines()[-1])
    return folder


def _rig(version: str) -> Any:
    """Load tests/tensorrt_rig/rig.py; the tests are no package, so it cannot be imported."""
    path = Path(__file__).parent / "tensorrt_rig" / "rig.py"
    spec = importlib.util.spec_from_file_location("flamest_tests_tensorrt_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    rig = module.Rig(version)
    if rig.missing:
        pytest.skip(rig.missing)
    return rig


@pytest.fixture(scope="session", params=["10.3", "10.16", "11.4"])
def tensorrt_rig(request: pytest.FixtureRequest) -> Any:
    """TensorRT's genuine Python classes, one version after the other; without a GPU, nothing is computed."""
    return _rig(request.param)


@pytest.fixture(scope="session")
def one_rig() -> Any:
    """``tensorrt_rig`` of the newest version alone, for tests that do not depend on the version."""
    return _rig("11.4")


@pytest.fixture(scope="session")
def lean_rig() -> Any:
    """Genuine lean runtime of TensorRT 11.4."""
    return _rig("lean")


@pytest.fixture
def make_federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """Make federations: ``make_federation("a", "b", rounds=5)`` takes any [run] setting; the test's end stops them."""
    made: list[Federation] = []

    def make(*silos: str, **run: Any) -> Federation:
        made.append(Federation(tmp_path / f"f{len(made)}", silos, **run))
        return made[-1]

    yield make
    for federation in made:
        federation.stop()
