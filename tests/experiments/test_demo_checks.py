"""Refusals of the demo before it renders a frame, and the way out that each error names."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from flamest.base.errors import DataError, FlamestError, MissingExtra, SettingsError, StorageError, UsageError
from flamest.base.extras import EXTRAS
from flamest.experiments import demo, demo_checks, demo_cli
from flamest.experiments.demo import Steps, run_demo
from flamest.experiments.demo_checks import DemoRequest, check_demo
from flamest.experiments.federation import FederationState
from flamest.experiments.federation_bars import federation_bars
from flamest.experiments.miniworld.videos import render_dataset
from flamest.runtime.bundle.packaged import miniworld_bundle
from typer.testing import CliRunner

CLASSES = ("ball", "box")


@pytest.fixture
def request_of(tmp_path: Path):
    """``request_of(videos=…)``: the request of a demo in a new folder."""
    plain = DemoRequest(
        tmp_path / "out", None, None, silos=2, rounds=1, beta=0.6, test_share=0.3, seed=0, threads=1
    )  # fmt: skip

    def make(**changes: object) -> DemoRequest:
        return dataclasses.replace(plain, **changes)

    return make


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips: two classes in three scenes. Read only."""
    folder = tmp_path_factory.mktemp("clips") / "clips"
    render_dataset(folder, groups=3, objects=CLASSES, motions=("lifting",), seed=3, processes=1)
    return folder


def refused(request: DemoRequest, kind: type[FlamestError]) -> FlamestError:
    """Return the error of a demo, which must have written nothing."""
    with pytest.raises(kind) as raised:
        run_demo(request, lambda line: None)
    assert not request.out.exists() or not any(request.out.iterdir())
    assert raised.value.fix
    return raised.value


def without(*missing: str):
    """Return a stand-in for find_spec that does not find some packages."""
    from importlib.util import find_spec

    return lambda name: None if name in missing else find_spec(name)


def test_everything_there_passes_the_checks_and_writes_nothing(request_of):
    assert check_demo(request_of()) == demo_checks.DemoInputs(None, None)
    assert not request_of().out.exists()


def test_given_clips_and_a_bundle_by_its_name_pass(request_of, clips):
    given = check_demo(request_of(videos=clips, bundle=Path("miniworld")))
    assert given.bundle is not None
    assert given.bundle.is_dir()
    assert len(given.videos or ()) == 6


@pytest.mark.parametrize(
    ("module", "package"),
    [("grpc", "grpcio"), ("apsw", "apsw"), ("onnxruntime", "onnxruntime"), ("av", "av"), ("sklearn", "scikit-learn")],
)
def test_a_missing_package_is_reported_with_both_extras(request_of, monkeypatch, module, package):
    monkeypatch.setattr("importlib.util.find_spec", without(module))
    error = refused(request_of(), MissingExtra)
    assert f"'{package}'" in error.message
    assert "flamest[agent,coordinator]" in error.fix


def test_export_without_pytorch_names_the_extra_export(request_of, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", without("torch", "torchvision", "transformers"))
    check_demo(request_of())  # the demo itself needs none of them
    error = refused(request_of(export=True), MissingExtra)
    assert "'torch'" in error.message
    assert "flamest[export]" in error.fix


def test_the_command_itself_names_the_extra_export_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", without("torch"))
    done = CliRunner().invoke(demo_cli.app, ["--export", "--out", str(tmp_path / "out"), "--json"])
    assert json.loads(done.stdout.splitlines()[-1])["error"]["fix"] == "pip install 'flamest[export]'"


def test_export_and_a_bundle_together_are_refused(request_of, tmp_path):
    assert "--export" in refused(request_of(export=True, bundle=tmp_path), UsageError).message


def test_an_output_folder_with_files_is_refused_and_kept(request_of):
    request = request_of()
    request.out.mkdir()
    (request.out / "notes").write_text("keep")
    with pytest.raises(StorageError, match="not empty"):
        run_demo(request, lambda line: None)
    assert (request.out / "notes").read_text() == "keep"


def test_an_output_that_is_a_file_is_refused(request_of, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not a folder"):
        check_demo(request_of(out=tmp_path / "file"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_may_not_be_written_is_refused(request_of, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(StorageError, match="may not be written"):
        check_demo(request_of(out=tmp_path / "locked" / "out"))


def test_too_little_free_disk_is_reported_in_megabytes(request_of, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10_000_000)
    monkeypatch.setattr(demo_checks.shutil, "disk_usage", lambda path: usage)
    error = refused(request_of(), StorageError)
    assert "10 MB of free disk" in error.message
    assert error.code == "disk_full"


def test_a_closed_loopback_is_reported(request_of, monkeypatch):
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(demo_checks.socket, "socket", refuse)
    assert "127.0.0.1" in refused(request_of(), SettingsError).message


def test_a_missing_folder_of_videos_is_refused(request_of, tmp_path):
    refused(request_of(videos=tmp_path / "nowhere"), DataError)


def test_clips_of_one_class_are_refused(request_of, tmp_path):
    (tmp_path / "videos" / "fall").mkdir(parents=True)
    (tmp_path / "videos" / "fall" / "a.mp4").write_bytes(b"x")
    assert "1 class" in refused(request_of(videos=tmp_path / "videos"), DataError).message


def test_too_few_clips_for_the_silos_are_refused(request_of, clips):
    refused(request_of(videos=clips, silos=40), DataError)


def test_clips_of_one_group_cannot_be_held_out(request_of, clips, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(clips, videos)
    names = [line.split(",")[:2] for line in (videos / "labels.csv").read_text().splitlines()[1:]]
    (videos / "labels.csv").write_text("path,label,group\n" + "".join(f"{path},{label},one\n" for path, label in names))
    assert "one group" in refused(request_of(videos=videos), DataError).message


def test_files_of_which_none_is_a_video_are_refused(request_of, tmp_path):
    for label in ("fall", "walk"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "videos" / label / f"{number}.mp4").write_bytes(b"no video")
    assert "can be read as a video" in refused(request_of(videos=tmp_path / "videos"), DataError).message


def test_a_changed_bundle_is_refused(request_of, tmp_path):
    bundle = miniworld_bundle(tmp_path / "bundle")
    (bundle / "cnn.onnx").write_bytes(b"another")
    assert "cnn.onnx" in refused(request_of(bundle=bundle), DataError).message


def test_a_refused_demo_leaves_no_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo_cli.tempfile, "mkdtemp", lambda prefix: str((tmp_path / "made").mkdir() or tmp_path / "made")
    )
    done = CliRunner().invoke(demo_cli.app, ["--videos", str(tmp_path / "nowhere"), "--json"])
    assert done.exit_code == DataError.exit_code == 65
    assert "nowhere" in json.loads(done.stdout.splitlines()[-1])["error"]["message"]
    assert not (tmp_path / "made").exists()


def test_steps_are_numbered_in_the_order_in_which_they_begin():
    lines: list[str] = []
    steps = Steps(lines.append)
    steps.begin("one")
    steps.note("found")
    steps.begin("two")
    assert lines == ["1. one", "   found", "2. two"]


class Recorded:
    """A progress that keeps what it is called with."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done, self.closed = title, total, 0, False

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def advance(self, steps: int = 1) -> None:
        self.done += steps


def test_the_federation_shows_clips_first_and_then_rounds(monkeypatch):
    bars: list[Recorded] = []
    monkeypatch.setattr(
        "flamest.experiments.federation_bars.progress_bar",
        lambda title, total, unit: bars.append(Recorded(title, total)) or bars[-1],
    )
    with federation_bars(20, 3) as show:
        show(FederationState(extracted=5, joined=0, silos=2, round=0))
        assert (bars[0].total, bars[0].done) == (20, 5)
        show(FederationState(extracted=4, joined=1, silos=2, round=0))  # a store that was busy: the bar stays
        assert bars[0].done == 5
        show(FederationState(extracted=0, joined=2, silos=2, round=0))
        assert (bars[0].done, bars[0].closed) == (20, True)
        show(FederationState(extracted=0, joined=2, silos=2, round=2))
        assert (bars[1].total, bars[1].done) == (3, 2)
        show(FederationState(extracted=0, joined=2, silos=2, round=3))
    assert (bars[1].done, bars[1].closed) == (3, True)


def test_the_demo_needs_no_pytorch():
    assert set(demo_checks.DEMO_PACKAGES).isdisjoint(EXTRAS["export"] - EXTRAS["agent"])
    assert "torch" not in demo.__dict__
