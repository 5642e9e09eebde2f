"""``flamest-agent label`` as a process: its output, its end, and what a kill leaves."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flamest.agent.cli.main import app
from flamest.agent.labelling.server import listen
from flamest.base.errors import LockedError
from typer.testing import CliRunner

from .conftest import Browser

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)(/[\w-]+)/enter\?token=[\w-]+")


class Command:
    """The running command."""

    def __init__(self, *words: str, **environment: str) -> None:
        command = [sys.executable, "-m", "flamest.agent", "label", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.lines: list[str] = []

    def address(self) -> str:
        """Read the output up to the next address."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := ADDRESS.search(line):
                return match[0]
        raise AssertionError(f"no address: {self.lines}")

    def browser(self) -> Browser:
        address = self.address()
        match = ADDRESS.fullmatch(address)
        assert match is not None
        browser = Browser(int(match[1]), match[2])
        browser.enter(address)
        return browser

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal; return exit code, the rest of stdout, and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def command() -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start(*words: str, **environment: str) -> Command:
            started = Command(*words, **environment)
            stack.callback(started.process.communicate)
            stack.callback(started.process.kill)
            return started

        yield start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_command_and_says_that_all_is_saved(command, videos, number):
    running = command("--videos", str(videos), "--no-browser", "--json")
    browser = running.browser()
    browser.put("a.mp4", "fall")
    code, out, err = running.end(number)
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1]) == {
        "folder": str(videos), "labels": str(videos / "labels.csv"), "saves": 1, "videos": 4
    }  # fmt: skip


def test_an_open_page_does_not_hold_the_end_up(command, videos):
    running = command("--videos", str(videos), "--no-browser")
    browser = running.browser()
    ended = threading.Thread(target=browser.get, args=("/api/events",))
    ended.start()
    code, out, err = running.end(signal.SIGTERM)
    ended.join(20)
    assert not ended.is_alive()
    assert (code, err) == (0, "")
    assert "everything is saved in" in out.splitlines()[-1]


@pytest.mark.parametrize("kills", [1, 3])
def test_a_kill_in_the_middle_of_saves_loses_no_acknowledged_label(command, videos, kills):
    running = command("--videos", str(videos), "--no-browser")
    browser = running.browser()
    saved: list[float] = []

    def save() -> None:
        with contextlib.suppress(OSError, Exception):
            for index in range(200):
                if browser.put("c.avi", f"label {index}", start_s=index, end_s=index + 0.5).json["applied"] == 1:
                    saved.append(float(index))

    thread = threading.Thread(target=save)
    thread.start()
    while len(saved) < 7 * kills and thread.is_alive():
        time.sleep(0.001)
    running.process.kill()
    running.process.wait()
    thread.join(60)
    assert saved
    with (videos / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} >= {"a.mp4", "b.mp4", "c.avi", "d.webm"}
    written = {float(row["start_s"]): row["label"] for row in rows if row["start_s"]}
    assert {index: f"label {index:g}" for index in saved}.items() <= written.items()
    assert len(written) - len(saved) in (0, 1)  # one may be saved whose answer did not arrive


def test_a_port_in_use_is_an_error_with_the_way_out(page):
    with pytest.raises(LockedError, match="is in use") as error:
        listen(page.port)
    assert "leave --port out" in error.value.fix


def test_a_browser_is_led_to_the_page_by_a_private_file(command, videos, tmp_path):
    seen = tmp_path / "seen"
    script = tmp_path / "browser"
    script.write_text(
        f'#!/bin/sh\necho "$@" > {seen}.new; stat -c %a "${{1#file://}}" >> {seen}.new; mv {seen}.new {seen}\n'
    )
    script.chmod(0o755)
    running = command("--videos", str(videos), BROWSER=f"{script} %s")
    address = running.address()
    while not seen.exists():
        assert running.process.poll() is None
        time.sleep(0.05)
    name, mode = seen.read_text().split()
    assert mode == "600"
    assert "token" not in name
    assert address in Path(name.removeprefix("file://")).read_text()
    match = ADDRESS.fullmatch(address)
    browser = Browser(int(match[1]), match[2])
    assert browser.enter(address).status == 200
    assert not Path(name.removeprefix("file://")).exists()
    assert running.end()[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--videos", "none"], 65, "is not a folder of videos"),
        (["--config", "none.toml"], 78, "none.toml"),
        ([], 2, "--videos"),
        (["--videos", ".", "--bundle", "miniworld"], 2, "--model"),
        (["--videos", ".", "--model", "m.safetensors"], 2, "--bundle"),
        (["--videos", ".", "--bundle", "miniworld", "--model", "none.safetensors"], 74, "none.safetensors"),
        (["--videos", ".", "--port", "70000"], 2, "--port"),
    ],
)
def test_a_wrong_command_line_is_an_error(tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["label", "--no-browser", *words])
    assert (done.exit_code, message in done.output) == (code, True), done.output
