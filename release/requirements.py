"""``python release/requirements.py --dist dist``: a hashed requirements file for each role, beside the wheel.

Each file holds the wheel of ``--dist`` and all that the role needs, at the versions of constraints.txt, with the
hashes of every file of a version: for all Pythons and processors that have one. pip then installs nothing else:

    pip install --require-hashes --find-links dist -r dist/requirements-agent.txt
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROLES = ("coordinator", "agent", "agent-gpu-cu12", "agent-gpu-cu13", "export", "experiments")
OLDEST_PYTHON = "3.11"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder with the wheel")
    parser.add_argument("--role", choices=ROLES, action="append", help="only this role; may be given several times")
    options = parser.parse_args()
    for role in options.role or ROLES:
        write_requirements(options.dist, role)


def requirements_of(dist: Path, role: str) -> Path:
    return dist / f"requirements-{role}.txt"


def find_wheel(dist: Path) -> Path:
    """Return the one wheel of this package in ``dist``; ends the program where there is none or several."""
    wheels = sorted(dist.glob("flamest-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"error: {dist} has {len(wheels)} wheels of flamest, expected one\n  fix: make dist")
    return wheels[0]


def write_requirements(dist: Path, role: str) -> None:
    wheel = find_wheel(dist)
    target = requirements_of(dist, role)
    target.write_text(header(wheel, role) + pinned(wheel, role) + resolve(role))
    print(f"{target}: {sum('==' in line for line in target.read_text().splitlines() if line[:1] != '#')} packages")


def header(wheel: Path, role: str) -> str:
    return (
        f"# All that the role '{role}' needs, with this release of flamest. In the folder of {wheel.name}:\n"
        f"#     pip install --require-hashes --find-links . -r requirements-{role}.txt\n"
    )


def pinned(wheel: Path, role: str) -> str:
    """Return the requirement that only ``wheel`` meets."""
    name, version = wheel.name.split("-")[:2]
    return f"{name}[{role}]=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


def resolve(role: str) -> str:
    """Return the requirements of a role with their hashes, as uv resolves them within constraints.txt."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    words = [str(uv), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--universal", "--generate-hashes"]
    words += ["--python-version", OLDEST_PYTHON, "--extra", role, "--constraint", "constraints.txt", "pyproject.toml"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
