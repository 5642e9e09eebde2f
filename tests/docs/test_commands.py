"""Every command block of the README and the quick starts runs as a reader types it, in the order of the pages.

Real processes, certificates and clips, on loopback. Above a block a page may have a comment, which no reader sees:

- ``<!-- not run: REASON -->``: the block is not run; ``NOT_RUN`` lists it.
- ``<!-- keeps running -->``: the command stays in the foreground, so the reader goes on in another terminal.
- ``<!-- edit: FILE -->``: lines that the reader changes in this settings file.

A ``text`` block is a part of what the commands above it print: each of its lines must be there. Numbers and digests may
differ, and ``…`` is any text.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {
    "README": ROOT / "README.md",
    **{name: ROOT / "docs" / "quickstart" / f"{name}.md" for name in ("operator", "silo", "researcher")},
}
# The order in which a reader on one machine goes through the pages: sections by their number, "" before the first one,
# and the words that the reader replaces. The two silos are at work at the same time.
SECOND = {"ward-7": "ward-8"}
WALK: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("README", "", {}),
    *(("operator", number, {}) for number in "123"),
    *(("silo", number, silo) for silo in ({}, SECOND) for number in "12"),
    *(("operator", number, {}) for number in "45"),
    *(("silo", number, silo) for number in "34" for silo in ({}, SECOND)),
    ("silo", "5", {}),
    ("operator", "6", {}),
    *(("researcher", number, {}) for number in "12345"),
)
# What a test cannot run: the page, the block's first command, and the reason, as in the page.
NOT_RUN = (
    ("README", "make demo", "sets up an environment"),
    ("operator", "python3 -m venv flamest-env", "installs the package"),
    ("silo", "python3 -m venv flamest-env", "installs the package"),
    ("silo", "flamest-agent label --videos ../recording", "opens a browser"),
    ("researcher", "python3 -m venv flamest-env", "installs the package"),
    ("researcher", "pip install '.[export]'", "exports networks with PyTorch and takes an hour"),
)

BLOCK = re.compile(r"(?:^<!-- (?P<note>[^\n]+) -->\n+)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\b[0-9a-f]{12,}\b|\d+(?:[.,]\d+)*")
PRINTED_WITHIN_S = 180.0  # by a command that keeps running; a reader waits too


@dataclass(frozen=True)
class Block:
    page: str
    section: str  # number of the heading above it; empty before the first one, and for headings without a number
    kind: str  # bash, python, toml or text
    note: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}, section {self.section!r}: {self.text.splitlines()[0]}"


@dataclass
class Running:
    """A command that keeps running."""

    block: Block
    process: subprocess.Popen[bytes]
    output: Path
    missing: list[str]  # lines that the page shows

    def wait(self) -> None:
        until = time.monotonic() + PRINTED_WITHIN_S
        while missing := missing_lines(self.missing, self.output.read_text()):
            ended = self.process.poll()
            shown = f"{self.block.name}\nended: {ended}; not printed: {missing}\n{self.output.read_text()}"
            assert ended is None, shown
            assert time.monotonic() < until, shown
            time.sleep(0.05)
        self.missing = []


class Reader:
    """A reader in front of terminals, one for each page and silo, that start in one folder."""

    def __init__(self, folder: Path, hidden: Path, substitutions: Mapping[str, str]) -> None:
        self._start, self._hidden, self._substitutions = folder, hidden, substitutions
        self._folders: dict[tuple[str, str], Path] = {}
        self.running: list[Running] = []
        self._printed: Running | str = ""  # by the last block
        self._environment = {
            **os.environ,
            "PATH": f"{write_commands(hidden)}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "120",
            "MPLBACKEND": "Agg",
        }

    def read(self, block: Block, silo: Mapping[str, str]) -> None:
        """Type a block, make its edit, or compare the last output with it."""
        terminal = (block.page, str(silo))
        folder = self._folders.setdefault(terminal, self._start)
        text = block.text
        for old, new in {**self._substitutions, **silo}.items():
            text = text.replace(old, new)
        if block.kind == "text":
            self._compare(block, text)
        elif block.note.startswith("edit: "):
            edit_settings(folder / block.note.removeprefix("edit: "), text)
        elif block.note == "keeps running":
            self._keep_running(block, text, folder)
        else:
            for running in self.running:
                running.wait()
            self._folders[terminal] = self._run(block, text, folder)

    def _run(self, block: Block, text: str, folder: Path) -> Path:
        """Run a block to its end; returns the folder in which its terminal is then."""
        left = self._hidden / "folder"
        code = [sys.executable, "-c", text] if block.kind == "python" else ["bash", "-ec", f'{text}\npwd > "{left}"']
        left.write_text(str(folder))
        done = subprocess.run(
            code, cwd=folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, f"{block.name}\nended with {done.returncode}:\n{done.stdout}"
        self._printed = done.stdout
        return Path(left.read_text().strip())

    def _keep_running(self, block: Block, text: str, folder: Path) -> None:
        output = self._hidden / f"{len(self.running)}.log"
        with output.open("w") as log:
            process = subprocess.Popen(
                ["bash", "-ec", f"exec {text}"],
                cwd=folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._printed = Running(block, process, output, [])
        self.running.append(self._printed)

    def _compare(self, block: Block, text: str) -> None:
        if isinstance(self._printed, Running):
            self._printed.missing += text.splitlines()  # compared before the next command
        else:
            missing = missing_lines(text.splitlines(), self._printed)
            assert missing == [], f"{block.name}\nnot printed: {missing}\n{self._printed}"

    def stop(self) -> None:
        """End what keeps running as Ctrl-C does."""
        for running in self.running:
            running.process.send_signal(signal.SIGINT)
        ended = {running.block.name: running.process.wait(30) for running in self.running}
        assert set(ended.values()) == {0}, ended


def blocks_of(page: str, text: str) -> list[Block]:
    numbers = [(found.start(), found[1] or "none") for found in re.finditer(r"^## (?:(\d)\.)?", text, re.MULTILINE)]
    if not any(number.isdigit() for _, number in numbers):
        numbers = []  # a page without steps is one
    return [
        Block(
            page,
            next((number for start, number in reversed(numbers) if start < found.start()), ""),
            found["kind"],
            found["note"] or "",
            found["text"],
        )
        for found in BLOCK.finditer(text)
    ]


def edit_settings(path: Path, lines: str) -> None:
    """Put each line of ``lines`` in the place of the line with its key, which may be commented out, in its section."""
    parts = re.split(r"^(?=\[)", path.read_text(), flags=re.MULTILINE)
    section = ""
    for line in filter(None, map(str.strip, lines.splitlines())):
        if line.startswith("["):
            section = line
            continue
        key = re.escape(line.partition(" = ")[0])
        at = next(index for index, part in enumerate(parts) if part.startswith(section))
        parts[at], found = re.subn(rf"^(# )?{key} = .*$", lambda _, new=line: new, parts[at], flags=re.MULTILINE)
        assert found == 1, f"{path}: {found} lines with {key} in {section or 'the first part'}"
    path.write_text("".join(parts))


def missing_lines(expected: Sequence[str], output: str) -> list[str]:
    """Return the lines that ``output`` has not, whatever the numbers."""
    seen = [normal(line) for line in output.splitlines()]
    patterns = {line: ".*".join(map(re.escape, normal(line).split("…"))) for line in expected if line.strip("… ")}
    return [line for line, pattern in patterns.items() if not any(re.search(pattern, found) for found in seen)]


def normal(line: str) -> str:
    return NUMBER.sub("#", " ".join(line.split()))


def write_commands(hidden: Path) -> Path:
    """Write the commands that the package installs, for this Python and this checkout."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    folder = hidden / "bin"
    folder.mkdir()
    for name, target in scripts.items():
        module, function = target.split(":")
        file = folder / name
        file.write_text(
            f"#!{sys.executable}\nfrom {module} import {function}\n\nif __name__ == '__main__':\n    {function}()\n"
        )
        file.chmod(0o755)
    return folder


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return [block for name, path in PAGES.items() for block in blocks_of(name, path.read_text())]


def test_every_command_block_runs_as_a_reader_types_it(blocks, tmp_path):
    """The reader replaces nothing but the port, which another program may have."""
    folder, hidden = tmp_path / "reader", tmp_path / "hidden"
    folder.mkdir()
    hidden.mkdir()
    reader = Reader(folder, hidden, {"7443": free_port()})
    done = set()
    try:
        for page, section, silo in WALK:
            for block in blocks:
                if (block.page, block.section) == (page, section) and not block.note.startswith("not run: "):
                    reader.read(block, silo)
                    done.add(block)
        reader.stop()
    finally:
        for running in reader.running:
            running.process.kill()
    assert [block.name for block in blocks if block not in done and not block.note.startswith("not run: ")] == []


def test_blocks_that_are_not_run_are_listed_with_their_reason(blocks):
    skipped = [
        (block.page, block.text.splitlines()[0].partition("  ")[0], block.note.partition("not run: ")[2])
        for block in blocks
        if "not run" in block.note
    ]
    assert tuple(skipped) == NOT_RUN


def test_the_pages_have_no_block_of_another_kind(blocks):
    """An indented block, or one without its language, would be run by nobody."""
    assert {block.kind for block in blocks} <= {"bash", "python", "toml", "text"}
    for name, path in PAGES.items():
        text = BLOCK.sub("", path.read_text())
        assert "```" not in text, name
        assert not re.search(r"^\n    \S", text, re.MULTILINE), name
    notes = {block.note.split(":")[0] for block in blocks} - {""}
    assert notes <= {"not run", "keeps running", "edit"}
    assert all(block.kind != "toml" or block.note.startswith("edit: ") for block in blocks)
