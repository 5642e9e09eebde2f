"""The agent's log and crash reports: no file, label, caption or value of a clip."""

import json
import shutil
import subprocess
import sys

import pytest
from flamest.agent.cli.main import app
from flamest.agent.extraction.store import FeatureStore
from flamest.agent.status import read_status
from flamest.agent.worker import Worker, WorkerCrashed
from flamest.base.process import Shutdown
from flamest.experiments.processes import daemons, wait_until
from flamest.runtime.bundle.opening import open_manifest
from typer.testing import CliRunner

SECRET = "canary-in-a-message"


@pytest.fixture
def silo(clips, toy_bundle, make_federation, tmp_path):
    """A silo with a folder of clips, two of them broken, and a coordinator that waits for it."""
    fingerprint = open_manifest(toy_bundle)[0].fingerprint
    federation = make_federation("a", inputs=9, hidden=[4], rounds=2, min_silos=1, fingerprint=f'"{fingerprint}"')
    text = (
        federation.config.read_text().replace('"fall"', '"canary-label-fall"').replace('"run",', '"canary-label-run",')
    )
    federation.config.write_text(text)
    home = tmp_path / "canary-home"
    videos = home / "canary-videos"
    for number in range(6):
        label = "canary-label-fall" if number % 2 else "canary-label-run"
        clips.write_clip(videos / label / f"canary-clip-{number}.avi", frames=12, seed=number, noise=10)
    (videos / "canary-label-run" / "canary-broken.avi").write_bytes(b"no video")
    (videos / "canary-label-run" / "canary-empty.avi").write_bytes(b"")
    federation.start()
    connection = federation.connection_settings("a")
    (home / "agent.toml").write_text(f"""
state = "state"
store = "canary-store.sqlite"
bundle = {json.dumps(str(toy_bundle))}
videos = "canary-videos"
[coordinator]
address = {json.dumps(connection.address)}
ca = {json.dumps(str(connection.ca))}
certificate = {json.dumps(str(connection.certificate))}
key = {json.dumps(str(connection.key))}
[policy]
min_samples = 1
min_samples_override = true
hold_out = 0.3
[work]
threads = 1
rescan_s = 0.5
""")
    return home


def run_to_the_end(home, level: str) -> str:
    with daemons() as start:
        words = ["run", "--config", home / "agent.toml", "--once", "--log-level", level]
        agent = start("a", home / "log", "agent", words)
        assert agent.process.wait(90) == 0
    return (home / "log").read_text()


def canaries_of(home) -> list[str]:
    with FeatureStore.open(home / "canary-store.sqlite", create=False, read_only=True) as store:
        stored = store.read()
    assert len(stored.labels) == 6
    numbers = [repr(float(value)) for value in stored.x[0, :3]] + [f"{value:.6g}" for value in stored.x[0, :3]]
    return [*(caption for caption in stored.captions if len(caption) > 6), *numbers]


def test_the_log_names_no_file_label_caption_or_value(silo):
    """At INFO: no canary appears, whatever the agent does."""
    log = run_to_the_end(silo, "info")
    assert "event=extracted" in log
    assert "failed=2" in log
    assert log.count("event=update_sent") == 2
    assert "canary" not in log
    assert "event=clips_failed video_empty=1 video_not_video=1" in log
    failed = {"video_empty": 1, "video_not_video": 1}
    assert read_status(silo / "state").failed_clips == failed
    output = CliRunner().invoke(app, ["status", "--config", str(silo / "agent.toml")]).stdout
    assert "clips of the videos that cannot be used: 2 (1 video_empty, 1 video_not_video)" in output
    assert "flamest-agent extract --bundle " in output
    assert "canary-videos --store " in output.replace("\n", "")
    assert [canary for canary in canaries_of(silo) if canary in log] == []


def test_log_and_status_name_nothing_of_a_labels_file(silo):
    """Rows that are used, doubted and refused: words of the table are in none of them."""
    rows = ["path,label,start_s,end_s,group,person,camera"]
    for number in range(6):
        label = "canary-label-fall" if number % 2 else "canary-label-run"
        path = f"{label}/canary-clip-{number}.avi"
        rows += [f"{path},{label},{start},{start + 0.2},,canary-person-{number},canary-cam" for start in (0, 0.1)]
    rows += [
        "canary-gone.avi,canary-label-run,,,,,",
        "canary-label-run/canary-clip-0.avi,canary\u202elabel,0,0.3,,,",
        "canary-label-run/canary-clip-0.avi,canary-unknown-label,0.05,0.3,canary-group,,",
        "canary-label-run/canary-clip-0.avi,canary-label-run,canary-start,0.3,,,",
        "canary-label-run/canary-clip-0.avi,canary-label-run,50,60,,,",
    ]
    (silo / "canary-videos" / "labels.csv").write_text("\n".join(rows) + "\n")
    log = run_to_the_end(silo, "info")
    assert log.count("event=update_sent") == 2
    assert "event=clips_failed bad_name=1 bad_segment=1 missing=1 segment_outside=1" in log
    assert "event=clip_notes" in log
    assert "canary" not in log
    assert "canary" not in (silo / "state" / "status.json").read_text()


def test_a_failed_extraction_logs_its_code_and_nothing_else(silo):
    """The message names the folder, so it stays in the state folder; with --log-level debug it is logged."""
    shutil.rmtree(silo / "canary-videos")
    (silo / "canary-videos").mkdir()
    for level, reported in (("info", False), ("debug", True)):
        with daemons() as start:
            words = ["run", "--config", silo / "agent.toml", "--log-level", level]
            agent = start("a", silo / f"log-{level}", "agent", words)
            output = lambda: (silo / f"log-{level}").read_text()  # noqa: B023, E731
            wait_until(lambda: "no_clips" in output(), "the failure", seconds=60, watched=[agent])  # noqa: B023
            wait_until(lambda: "training_failed" in output(), "the next one", seconds=60, watched=[agent])  # noqa: B023
        assert ("canary" in (silo / f"log-{level}").read_text()) is reported
    assert "canary-videos holds no video files" in read_status(silo / "state").extraction


def test_an_unforeseen_error_in_the_worker_is_logged_without_its_message():
    """Crash path of the worker; it says what kind of error and where, and the daemon goes on."""
    with Worker(Shutdown()) as worker:
        with pytest.raises(WorkerCrashed, match=r"ValueError in agent/worker\.py:\d+") as error:
            worker.call(int, SECRET)  # Python's message would repeat it
        assert worker.call(int, "7") == 7
    assert SECRET not in error.value.message


CRASH = """
import sys, threading
from flamest.base.process import keep_crashes_private
keep_crashes_private(full_messages="debug" in sys.argv)
def fail(): int(sys.argv[1])
thread = threading.Thread(target=fail)
thread.start()
thread.join()
try:
    fail()
except ValueError as error:
    raise RuntimeError("while reading " + sys.argv[1])
"""


@pytest.mark.parametrize("level", ["info", "debug"])
def test_an_uncaught_error_names_types_and_places_only(level):
    """Crash path of the daemon and its threads."""
    done = subprocess.run([sys.executable, "-c", CRASH, SECRET, level], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (SECRET in done.stdout + done.stderr) is (level == "debug")
    if level == "info":
        assert done.stderr.count("error: unexpected") == 2
        assert "RuntimeError in" in done.stderr
        assert "after ValueError in" in done.stderr


CORE = """
import resource
from flamest.agent.worker import Worker
from flamest.base.process import keep_crashes_private
from flamest.base.process import Shutdown
if __name__ == "__main__":
    keep_crashes_private(full_messages=False)
    with Worker(Shutdown()) as worker:
        print(resource.getrlimit(resource.RLIMIT_CORE), worker.call(resource.getrlimit, resource.RLIMIT_CORE))
"""


def test_daemon_and_worker_dump_no_core(tmp_path):
    """And neither can switch it on again."""
    script = tmp_path / "script.py"
    script.write_text(CORE)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(0, 0) (0, 0)", done.stderr
