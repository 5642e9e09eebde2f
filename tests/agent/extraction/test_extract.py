"""Extraction of a folder into a store: new clips are extracted, broken ones reported, nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.cli.main import app
from flamest.agent.extraction.extract import extract_folder
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.extraction.store import FeatureStore
from flamest.base.errors import DataError, LockedError, SettingsError
from flamest.base.files import sha256_file
from flamest.runtime.extractor import STAGES
from flamest.runtime.video.decoder import DecodeLimits
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """Five clips of two classes."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(5):
        label = "wave" if number % 2 else "punch"
        clips.write_clip(folder / label / f"{number}.avi", frames=12, seed=number, noise=10)
    return folder


@pytest.fixture
def videos(made, tmp_path):
    return shutil.copytree(made, tmp_path / "videos")


@pytest.fixture
def request_(toy_bundle, videos, tmp_path):
    return ExtractRequest(toy_bundle, videos, tmp_path / "features.sqlite", threads=1)


def read(request):
    with FeatureStore.open(request.store, read_only=True) as store:
        return store.read()


def test_every_clip_is_stored_with_label_group_and_embedding(request_):
    report = extract_folder(request_)
    assert (report.clips, report.extracted, report.skipped, report.failed) == (5, 5, 0, ())
    stored = read(request_)
    assert stored.x.shape == (5, 9)
    assert sorted(stored.paths) == [f"punch/{n}.avi" for n in (0, 2, 4)] + [f"wave/{n}.avi" for n in (1, 3)]
    assert all(path.startswith(f"{label}/") for path, label in zip(stored.paths, stored.labels, strict=True))
    assert stored.clips == tuple(sha256_file(request_.videos / path) for path in stored.paths)
    assert sorted(stored.groups) == ["0", "1", "2", "3", "4"]


def test_the_report_has_times_per_stage_and_memory(request_):
    report = extract_folder(request_)
    assert set(report.stages_ms) == set(STAGES)
    assert all(spent > 0 for spent in report.stages_ms.values())
    # Reading runs in parallel with the networks; their stages follow each other.
    assert sum(report.stages_ms[stage] for stage in ("vision", "caption", "embed", "cnn")) <= report.ms_per_clip
    assert report.peak_mb > 50
    assert not report.stopped


def test_a_second_run_extracts_nothing_and_opens_no_network(request_, monkeypatch):
    extract_folder(request_)
    monkeypatch.setattr(
        "flamest.agent.extraction.networks_on_demand.open_extractor", lambda *_, **__: pytest.fail("opened")
    )
    before = read(request_).x.tobytes()
    report = extract_folder(request_)
    assert (report.extracted, report.skipped, report.ms_per_clip, report.stages_ms) == (0, 5, None, {})
    assert read(request_).x.tobytes() == before


def test_a_moved_and_relabelled_clip_is_not_extracted_again(request_):
    extract_folder(request_)
    (request_.videos / "wave" / "1.avi").rename(request_.videos / "punch" / "renamed.avi")
    report = extract_folder(request_)
    assert (report.extracted, report.skipped) == (0, 5)
    stored = read(request_)
    assert stored.labels[stored.paths.index("punch/renamed.avi")] == "punch"
    assert len(stored.clips) == 5


def test_only_new_content_is_extracted(request_, clips):
    extract_folder(request_)
    clips.write_clip(request_.videos / "wave" / "9.avi", seed=9)
    report = extract_folder(request_)
    assert (report.extracted, report.skipped) == (1, 5)


def test_another_bundle_extracts_again_and_keeps_the_old_features(request_, toys, tmp_path):
    extract_folder(request_)
    other = toys.write_bundle(tmp_path / "other", extraction_seed=1)
    report = extract_folder(ExtractRequest(other, request_.videos, request_.store, threads=1))
    assert report.extracted == 5
    with FeatureStore.open(request_.store, read_only=True) as store:
        assert [kind.clips for kind in store.kinds()] == [5, 5]


def test_broken_clips_are_reported_and_the_others_extracted(request_):
    folder = request_.videos
    (folder / "wave" / "0-empty.mp4").touch()
    (folder / "wave" / "text.mp4").write_text("not a video at all")
    os.mkfifo(folder / "wave" / "pipe.mp4")
    (folder / "wave" / "gone.mp4").symlink_to("nowhere.mp4")
    report = extract_folder(request_)
    assert report.extracted == 5
    assert report.clips == 9
    reasons = {failed.clip: failed.reason for failed in report.failed}
    assert reasons["wave/0-empty.mp4"] == "video_empty: is empty"
    assert reasons["wave/text.mp4"].startswith("video_not_video: is not a video in one of the formats mov,")
    assert reasons["wave/pipe.mp4"] == "video_not_a_file: is not a regular file"
    assert reasons["wave/gone.mp4"] == "missing: no such file"
    assert len(reasons) == 4


def test_a_failed_clip_is_retried_only_on_request_or_when_changed(request_, clips, monkeypatch):
    broken = request_.videos / "wave" / "text.mp4"
    broken.write_text("not a video at all")
    first = extract_folder(request_)
    from flamest.runtime.video.clip_reader import ClipReader

    tried = []
    read = ClipReader.read
    monkeypatch.setattr(ClipReader, "read", lambda self, clip: tried.append(clip.path.name) or read(self, clip))
    again = extract_folder(request_)
    assert again.failed == tuple(replace(failed, known=True) for failed in first.failed)
    assert tried == []
    extract_folder(ExtractRequest(request_.bundle, request_.videos, request_.store, threads=1, retry=True))
    assert tried == ["text.mp4"]
    broken.unlink()
    clips.write_clip(broken, seed=11)
    report = extract_folder(request_)
    assert (report.extracted, report.failed) == (1, ())


def test_a_truncated_clip_is_used_with_a_warning(request_, clips):
    path = clips.write_clip(request_.videos / "wave" / "cut.avi", frames=60, noise=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    report = extract_folder(request_)
    assert report.extracted == 6
    assert {warning.clip for warning in report.warnings} == {"wave/cut.avi"}


def test_the_same_content_under_two_names_is_one_clip(request_):
    shutil.copy(request_.videos / "wave" / "1.avi", request_.videos / "wave" / "copy.avi")
    report = extract_folder(request_)
    assert (report.extracted, report.skipped, report.failed) == (5, 1, ())


def test_the_same_content_under_two_labels_keeps_the_first(request_):
    shutil.copy(request_.videos / "wave" / "1.avi", request_.videos / "punch" / "1.avi")
    for _ in range(2):
        report = extract_folder(request_)
        (failed,) = report.failed
        assert failed.clip == "wave/1.avi"
        assert failed.reason.startswith("label_conflict: has the same content as punch/1.avi, which is labelled punch")
    stored = read(request_)
    assert len(stored.clips) == 5
    assert stored.labels[stored.paths.index("punch/1.avi")] == "punch"


@pytest.mark.parametrize("unlabelled", ["0.avi", "zz.avi"])
def test_an_unlabelled_copy_of_a_labelled_clip_is_no_conflict(request_, unlabelled):
    shutil.copyfile(request_.videos / "punch" / "2.avi", request_.videos / unlabelled)
    for _ in range(2):
        report = extract_folder(request_)
        assert not report.failed
        labels = dict(zip(read(request_).paths, read(request_).labels, strict=True))
        assert labels["punch/2.avi"] == "punch"
        assert unlabelled not in labels


def test_copies_of_a_broken_file_fail_as_it_does(request_):
    """Their labels are not compared."""
    shutil.copytree(request_.videos / "wave", request_.videos / "jump")  # copies under another label, of good clips
    for label in ("jump", "punch", "wave"):
        (request_.videos / label / "empty.mp4").touch()
        (request_.videos / label / "text.mp4").write_text("not a video at all")
    (request_.videos / "punch" / "text-again.mp4").write_text("not a video at all")
    for known in (False, True):
        report = extract_folder(request_)
        reported = {failed.clip: (failed.code, failed.known) for failed in report.failed}
        empty = {f"{label}/empty.mp4": ("video_empty", known) for label in ("jump", "punch", "wave")}
        names = ("jump/text.mp4", "punch/text.mp4", "punch/text-again.mp4", "wave/text.mp4")
        conflicts = {f"wave/{number}.avi": ("label_conflict", False) for number in (1, 3)}
        assert reported == {**empty, **dict.fromkeys(names, ("video_not_video", known)), **conflicts}
        assert (report.extracted, report.skipped) == ((0, 5) if known else (5, 0))
        assert report.clips == len(report.failed) + 5


def test_a_clip_that_changes_while_read_waits_for_the_next_run(request_, monkeypatch):
    from flamest.runtime.video.clip_reader import ClipReader

    read = ClipReader.read

    def growing(self, clip):
        prepared = read(self, clip)
        if clip.path.name == "1.avi":
            with clip.path.open("ab") as file:
                file.write(b"more")
        return prepared

    with monkeypatch.context() as patch:
        patch.setattr(ClipReader, "read", growing)
        report = extract_folder(request_)
    assert report.extracted == 4
    assert [failed.reason.split(":")[0] for failed in report.failed] == ["video_changed"]
    assert extract_folder(request_).extracted == 1


def test_a_clip_linked_or_made_private_while_read_is_stored(request_, monkeypatch, tmp_path):
    from flamest.runtime.video.clip_reader import ClipReader

    read = ClipReader.read

    def backed_up(self, clip):
        prepared = read(self, clip)
        (tmp_path / clip.path.name).hardlink_to(clip.path)  # as a backup by hard links does
        clip.path.chmod(0o600)
        return prepared

    monkeypatch.setattr(ClipReader, "read", backed_up)
    report = extract_folder(request_)
    assert (report.extracted, report.failed) == (5, ())


def test_a_clip_that_kills_the_decoder_does_not_stop_the_others(request_, monkeypatch):
    from flamest.runtime.video.decoder import VideoDecoder

    candidates = VideoDecoder.candidates

    def deadly(self, path, *more, **options):
        if path.name == "2.avi":
            candidates(self, path)  # so that the process is ready
            os.kill(self.pid, signal.SIGKILL)
        return candidates(self, path, *more, **options)

    monkeypatch.setattr(VideoDecoder, "candidates", deadly)
    report = extract_folder(request_)
    assert report.extracted >= 4  # the process may be replaced before the clip is sent
    assert {failed.code for failed in report.failed} <= {"decoder_killed"}


def dying(monkeypatch, *endings):
    """The decoder ends with the next of ``endings`` (a signal, None: not at all) whenever clip 2 is decoded."""
    from flamest.runtime.video.decoder import VideoDecoder

    prepared, tried = VideoDecoder.prepared, []

    def deadly(self, candidates, chosen):
        if candidates.path.name == "2.avi":
            tried.append(self._process.pid)
            number = endings[min(len(tried), len(endings)) - 1]
            if number is not None:
                os.kill(self._process.pid, number)
        return prepared(self, candidates, chosen)

    monkeypatch.setattr(VideoDecoder, "prepared", deadly)
    return tried


def test_a_clip_that_crashes_its_decoder_is_retried_in_a_new_process(request_, monkeypatch):
    tried = dying(monkeypatch, signal.SIGSEGV, None)
    assert extract_folder(request_).extracted == 5
    assert len(set(tried)) == 2


def test_a_crash_is_remembered_and_a_kill_from_outside_is_not(request_, monkeypatch):
    for number, code, tries in ((signal.SIGKILL, "decoder_killed", 2), (signal.SIGSEGV, "decoder_crashed", 0)):
        with monkeypatch.context() as patch:
            assert len(dying(patch, number)) == 0
            (failed,) = extract_folder(request_).failed
        assert (failed.clip, failed.code, failed.known) == ("punch/2.avi", code, False)
        with monkeypatch.context() as patch:
            tried = dying(patch, number)
            (failed,) = extract_folder(request_).failed
        assert (len(tried), failed.known) == (tries, tries == 0)
    retried = replace(request_, retry=True)
    assert (extract_folder(retried).extracted, extract_folder(retried).failed) == (1, ())


@pytest.fixture
def broken_av(tmp_path, monkeypatch):
    """An installation of PyAV that does not load; calling it repairs it."""
    (tmp_path / "broken" / "av").mkdir(parents=True)
    (tmp_path / "broken" / "av" / "__init__.py").write_text("raise ImportError('libavcodec.so.61: not found')")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}{os.pathsep}{before}")  # for commands
    monkeypatch.setattr(sys, "path", [str(tmp_path / "broken"), *sys.path])  # for this process's children

    def repair() -> None:
        monkeypatch.setenv("PYTHONPATH", before)
        monkeypatch.setattr(sys, "path", sys.path[1:])

    return repair


def test_a_decoder_that_does_not_load_ends_the_run_without_failed_clips(request_, broken_av):
    with pytest.raises(SettingsError, match=r"does not run: ImportError: libavcodec\.so\.61: not found") as caught:
        extract_folder(request_)
    assert (caught.value.code, caught.value.fix) == ("decoder_broken", "flamest-agent doctor")
    done = run("doctor", "--json")
    reported = json.loads(done.stdout.splitlines()[-1])
    assert reported["ok"] is False
    assert "libavcodec.so.61" in reported["decoder"]["problem"]
    assert "libavcodec.so.61" in run("doctor").stdout
    broken_av()
    assert extract_folder(request_).extracted == 5
    assert json.loads(run("doctor", "--json").stdout.splitlines()[-1])["decoder"] == {"ok": True, "problem": ""}


def too_slow(monkeypatch, needs_s):
    """Clip 2 needs so many seconds of decoding."""
    from flamest.runtime.video.clip_reader import ClipReader

    read = ClipReader.read

    def slow(self, clip):
        if clip.path.name == "2.avi" and self.video._limits.timeout_s < needs_s:
            raise DataError(f"{clip.path} took longer than it may to decode", code="video_timeout")
        return read(self, clip)

    monkeypatch.setattr(ClipReader, "read", slow)


def test_a_clip_that_timed_out_is_retried_only_with_more_time(request_, monkeypatch):
    too_slow(monkeypatch, needs_s=300)
    outcomes = []
    for seconds in (120, 120, 60, 200, 200, 120, 400):
        report = extract_folder(replace(request_, limits=DecodeLimits(timeout_s=seconds)))
        outcomes.append([failed.known for failed in report.failed])
        assert all("took longer than" in failed.reason for failed in report.failed)
        assert all("--clip-timeout" in failed.reason for failed in report.failed)
    assert outcomes == [[False], [True], [True], [False], [True], [True], []]


def test_a_damaged_bundle_is_one_error_and_no_failed_clips(request_, tmp_path):
    bundle = shutil.copytree(request_.bundle, tmp_path / "bundle")
    (bundle / "cnn.onnx").write_bytes((bundle / "cnn.onnx").read_bytes() + b"\0")
    with pytest.raises(DataError) as caught:
        extract_folder(ExtractRequest(bundle, request_.videos, request_.store))
    assert caught.value.code == "bundle_tampered"


def test_the_error_for_an_empty_folder_names_the_expected_layout(request_, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no video files") as caught:
        extract_folder(ExtractRequest(request_.bundle, tmp_path / "nothing", request_.store))
    assert "LABEL/clip.mp4" in caught.value.fix


def test_two_extractions_into_one_store_do_not_mix(request_):
    with FeatureStore.open(request_.store), pytest.raises(LockedError):
        extract_folder(request_)


def test_a_stop_ends_between_clips_and_the_next_run_resumes(request_):
    done = []
    report = extract_folder(request_, on_clip=lambda: done.append(1), stop=lambda: len(done) == 2)
    assert (report.extracted, report.stopped, report.clips) == (2, True, 5)
    report = extract_folder(request_)
    assert (report.extracted, report.skipped, report.stopped) == (3, 2, False)


# --- the commands ---


def arguments(request):
    return ["--bundle", str(request.bundle), "--videos", str(request.videos), "--store", str(request.store)]


def run(*command):
    program = [sys.executable, "-W", "error", "-m", "flamest.agent", *map(str, command)]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_extract_ends_with_one_json_object_of_the_documented_keys(request_):
    (request_.videos / "wave" / "empty.mp4").touch()
    done = run("extract", *arguments(request_), "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report.keys() == {
        "clips", "extracted", "skipped", "failed", "warnings", "ms_per_clip", "stages_ms", "peak_mb", "stopped",
        "precision", "choice", "followed", "backends", "pipeline", "crashes", "notes",
        "unlisted", "clip_notes",
    }  # fmt: skip
    assert (report["clips"], report["extracted"]) == (6, 5)
    assert report["failed"] == [
        {"clip": "wave/empty.mp4", "reason": "video_empty: is empty", "known": False, "clips": 1}
    ]
    assert "extracting: 6/6 clips" in done.stderr


def test_extract_prints_times_and_failures(request_):
    (request_.videos / "wave" / "empty.mp4").touch()
    done = run("extract", *arguments(request_), "--threads", 1)
    assert "5 clips extracted, 0 already in the store, 1 failed" in done.stdout
    assert "failed: wave/empty.mp4: video_empty: is empty" in done.stdout
    for stage in STAGES:
        assert stage in done.stdout
    again = run("extract", *arguments(request_), "--threads", 1)
    assert "failed earlier: wave/empty.mp4: video_empty: is empty" in again.stdout
    assert "1 of them failed in an earlier run and were not tried again: use --retry" in again.stdout


def test_extract_exits_with_65_when_no_clip_is_usable(request_):
    shutil.rmtree(request_.videos)
    (request_.videos / "wave").mkdir(parents=True)
    (request_.videos / "wave" / "empty.mp4").touch()
    (request_.videos / "wave" / "text.mp4").write_text("not a video at all")
    doctor = "see the errors above; flamest-agent doctor shows if this machine can decode video"
    for fix in (doctor, "run the same command with --retry to try them again"):
        done = run("extract", *arguments(request_), "--threads", 1, "--json")
        (line,) = done.stdout.splitlines()
        report = json.loads(line)
        assert done.returncode == report["exit_code"] == 65
        assert report["error"]["code"] == "all_clips_failed"
        assert report["error"]["message"] == "none of the 2 clips is usable: 1 video_empty, 1 video_not_video"
        assert report["error"]["fix"] == fix
        assert len(report["failed"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_extract_without_loss(request_, clips, number):
    for seed in range(20, 60):
        clips.write_clip(request_.videos / "wave" / f"{seed}.avi", frames=12, seed=seed)
    command = [sys.executable, "-m", "flamest.agent", "extract", *arguments(request_), "--threads", "1", "--json"]
    extraction = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if request_.store.exists() and rows(request_.store) >= 2:
            break
        time.sleep(0.02)
    extraction.send_signal(number)
    out, errors = extraction.communicate(timeout=30)
    assert extraction.returncode == 128 + number, errors
    report = json.loads(out.splitlines()[-1])
    assert report["stopped"]
    assert (report["exit_code"], report["error"]["fix"]) == (128 + number, "run the same command again to continue")
    assert report["failed"] == []
    assert report["extracted"] == rows(request_.store) < 45
    assert json.loads(run("extract", *arguments(request_), "--json").stdout)["extracted"] == 45 - report["extracted"]


def rows(store):
    try:
        with FeatureStore.open(store, read_only=True) as opened:
            return sum(kind.clips for kind in opened.kinds())
    except DataError:  # its tables are not there yet
        return 0


def test_features_are_written_for_a_notebook(request_, tmp_path):
    extract_folder(request_)
    out = tmp_path / "out.npz"
    result = CliRunner().invoke(app, ["features", "--store", str(request_.store), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    reported = json.loads(result.stdout.splitlines()[-1])
    assert (reported["clips"], reported["width"], reported["vlm_width"], reported["classes"]) == (5, 9, 4, 2)
    with np.load(out, allow_pickle=False) as file:
        assert file["x"].tobytes() == read(request_).x.tobytes()


def test_imported_embeddings_are_written_out_again(tmp_path):
    file, store, out = tmp_path / "in.npz", tmp_path / "store.sqlite", tmp_path / "out.npz"
    np.savez(file, x=np.eye(4, 7), y=np.array(["a", "a", "b", "b"]), clip=np.array(["p", "q", "r", "s"]))
    runner = CliRunner()
    result = runner.invoke(app, ["import-features", str(file), "--store", str(store), "--name", "eye", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fingerprint"] == "imported:eye:7"
    assert runner.invoke(app, ["features", "--store", str(store), "--out", str(out)]).exit_code == 0
    with np.load(out, allow_pickle=False) as written:
        assert sorted(map(tuple, written["x"].tolist())) == sorted(map(tuple, np.eye(4, 7).tolist()))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["features", "--store", "nowhere.sqlite", "--out", "x.npz"], 65),
        (["extract", "--bundle", "nowhere", "--videos", "nowhere", "--store", "s.sqlite"], 65),
        (["import-features", "nowhere.npz", "--store", "s.sqlite"], 74),
    ],
)
def test_a_missing_file_is_named_with_an_exit_code_and_no_traceback(command, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*command)
    assert result.returncode == code
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(Path.cwd().iterdir()) == []


def test_the_page_on_clips_lists_every_code_and_which_are_remembered():
    """Codes that decoder.py lists, and those that the agent adds."""
    import re

    import flamest
    from flamest.agent.extraction.failures import REMEMBERED_CODES, TIMEOUT_CODE
    from flamest.runtime.video import decoder

    rows = (Path(flamest.__path__[0]) / "docs" / "guides" / "clips.md").read_text().splitlines()
    table = {code: row for row in rows if row.startswith("| `") for code in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert table.keys() >= set(re.findall(r"^    (\w+_\w+)  ", decoder.__doc__, re.M)) | REMEMBERED_CODES
    assert {code for code, row in table.items() if row.endswith("| not tried again |")} == REMEMBERED_CODES - {
        TIMEOUT_CODE
    }


def test_features_of_another_bundle_in_the_store_are_reported(toy_bundle, made, tmp_path):
    import sqlite3
    from contextlib import closing

    path = tmp_path / "s.sqlite"
    request = ExtractRequest(toy_bundle, made, path)
    assert extract_folder(request).notes == ()
    with closing(sqlite3.connect(path)) as store, store:
        store.execute("UPDATE features SET fingerprint = ?", ("ab" * 32,))
    (note,) = extract_folder(request).notes
    assert note.startswith("the store has 5 clips of another bundle (fingerprint abababababab)")
    assert "train --fingerprint" in note


@pytest.mark.parametrize(("stored", "said"), [(0, False), (3, True)])
def test_a_stopped_extraction_speaks_of_stored_clips_where_there_are_some(stored, said):
    from types import SimpleNamespace

    from flamest.agent.cli.extraction import _stopped

    report = SimpleNamespace(clips=22, extracted=stored, skipped=0, failed_clips=0)
    message = _stopped(report, signal.SIGINT).message
    assert f"stopped with {22 - stored} of 22 clips left" in message
    assert ("the others are in the store" in message) is said
