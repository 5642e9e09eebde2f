"""``python release/wheelhouse.py --dist dist --role agent``: every wheel of a role in one folder.

Each download is compared with the hashes of ``requirements-ROLE.txt``. Packages that are published as source only are
built. ``dist/wheelhouse-ROLE`` then installs without a network, on machines with this system and this Python:

    pip install --no-index --find-links wheelhouse-agent --require-hashes -r wheelhouse-agent/requirements.txt

With ``--python 3.13`` the wheels are those of another version of Python; every package must then have a wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from requirements import ROLES, ROOT, find_wheel, requirements_of

GLIBC = range(17, 35)  # manylinux_2_17 to 2_34: what wheels of today ask for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder with the wheel and the requirements")
    parser.add_argument("--role", choices=ROLES, default="agent")
    parser.add_argument("--python", default="", help="version of Python of the other machine, such as 3.13")
    options = parser.parse_args()
    folder = options.dist / f"wheelhouse-{options.role}"
    requirements = requirements_of(options.dist, options.role)
    if not requirements.exists():
        sys.exit(f"error: {requirements} is missing\n  fix: make requirements")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    collect(requirements, find_wheel(options.dist), folder, options.python)
    wheels = write_list(folder, options.role)
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{folder}: {len(wheels)} wheels, {size / 1e6:.0f} MB; copy the folder, and there:")
    print(f"  pip install --no-index --find-links {folder.name} --require-hashes -r {folder.name}/requirements.txt")


def collect(requirements: Path, wheel: Path, folder: Path, python: str) -> None:
    """Fill ``folder`` with the wheels that ``requirements`` names, for this Python or for ``python``."""
    words = ["--quiet", "--no-deps", "--require-hashes", "--find-links", str(wheel.parent), "-r", str(requirements)]
    if not python:
        command = ["wheel", "--wheel-dir", str(folder), *words]
    else:
        machine = platform.machine()
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC)] + [f"manylinux2014_{machine}"]
        named = [word for name in platforms for word in ("--platform", name)]
        command = ["download", "--dest", str(folder), "--only-binary=:all:", "--python-version", python, *named, *words]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)


def write_list(folder: Path, role: str) -> list[Path]:
    """Write the folder's own requirements.txt: each wheel in it with its hash; return the wheels."""
    wheels = sorted(folder.glob("*.whl"))
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        extra = f"[{role}]" if name == "flamest" else ""
        lines.append(f"{name}{extra}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    (folder / "requirements.txt").write_text("".join(lines))
    return wheels


if __name__ == "__main__":
    main()
