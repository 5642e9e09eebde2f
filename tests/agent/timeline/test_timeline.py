"""Timelines of real videos: actions in order, unknown ones, a broken middle, windows that are not kept."""

import csv
import io
import json
import os

import pytest
from flamest.agent.answers import Answers
from flamest.agent.cli.main import app
from flamest.agent.predict import predict_videos
from flamest.agent.timeline.reading import TimelineProgress, open_reader
from flamest.agent.timeline.windows import window_plan
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, read_model, write_model
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.bundle.manifest_reading import read_manifest
from typer.testing import CliRunner

ONE_THREAD = OpeningOptions(threads=1)


def predicted(*words):
    """Exit code, stdout and stderr."""
    done = CliRunner().invoke(app, ["predict", *map(str, words), "--threads", "1"])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def toy(toy_bundle, tmp_path_factory):
    """A model of the toy bundle without a calibration: it always names a class."""
    path = tmp_path_factory.mktemp("toy") / "model.safetensors"
    head = HeadSpec(inputs=9, outputs=3, hidden=(8,))
    fingerprint = read_manifest(toy_bundle).fingerprint
    write_model(path, ModelFile(head, initial_params(head, 0), ("run", "jump", "wave"), fingerprint))
    return path


def test_a_recording_becomes_its_actions_in_order_with_the_unknown_one(miniworld_recording):
    made = miniworld_recording
    code, out, errors = predicted("--timeline", made.video, "--bundle", made.bundle, "--model", made.model, "--json")
    assert code == 0, errors
    [timeline] = json.loads(out.splitlines()[-1])["timelines"]
    events = timeline["events"]
    assert [event["label"] for event in events] == ["ball_lifting", "unknown", "star_circling", "cross_lifting"]
    assert [event["unknown"] for event in events] == [False, True, False, False]
    for event, (_, start, end) in zip(events, made.truth, strict=True):
        shared = min(event["end"], end) - max(event["start"], start)
        assert shared / (max(event["end"], end) - min(event["start"], start)) > 0.5
    assert events[0]["start"] == 0.0
    assert [event["end"] for event in events[:-1]] == [event["start"] for event in events[1:]]
    assert timeline["length_s"] == events[-1]["end"] == pytest.approx(made.truth[-1][2], abs=0.1)
    assert f"long.mp4: {timeline['windows']}/{timeline['windows']} windows" in errors


def test_a_video_no_longer_than_a_window_gets_the_answer_of_predict(clips, toy_bundle, toy, tmp_path):
    path = clips.write_clip(tmp_path / "short.mp4", frames=30)
    [whole] = predict_videos(toy_bundle, toy, [path], opening=ONE_THREAD)
    with open_reader(toy_bundle, opening=ONE_THREAD) as reader:
        [event] = reader.events(path, Answers(read_model(toy)))
    assert (event.label, event.probability, event.labels) == (whole.label, whole.labels[0].probability, whole.labels)
    assert (event.start_s, event.end_s, event.windows) == (0.0, 1.2, 1)


def damaged_middle(clips, path):
    """A video of 20 s whose frames from about 8 to 12 s are destroyed."""
    clips.write_clip(path, frames=500, noise=30)
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov")
    for position in range(begin + (end - begin) * 2 // 5, begin + (end - begin) * 3 // 5):
        data[position] = 0
    path.write_bytes(data)
    return path


def test_a_broken_middle_is_reported_and_the_rest_is_answered(clips, toy_bundle, toy, tmp_path):
    path = damaged_middle(clips, tmp_path / "broken.mp4")
    with open_reader(toy_bundle, plan=window_plan(1), opening=ONE_THREAD) as reader:
        timeline = reader.timeline(path, Answers(read_model(toy)))
    [broken] = [event for event in timeline.events if event.reason]
    assert not timeline.reason
    assert "video_damaged" in broken.reason
    assert (broken.label, broken.unknown) == ("", True)
    assert 5 < broken.start_s < 9
    assert 10 < broken.end_s < 13
    assert broken.reason.count("broken.mp4") == 0, "its video is named once, above"
    read = [event for event in timeline.events if event.label]
    assert read[0].start_s == 0.0
    assert read[-1].end_s == timeline.length_s == pytest.approx(20.0)
    assert all(one.end_s == other.start_s for one, other in zip(timeline.events, timeline.events[1:], strict=False))


def test_text_and_table_show_events_reasons_and_what_is_no_video(clips, toy_bundle, toy, tmp_path):
    clips.write_clip(tmp_path / "in" / "long.mp4", frames=200)
    (tmp_path / "in" / "text.avi").write_text("not a video")
    given = ["--timeline", tmp_path / "in", "--bundle", toy_bundle, "--model", toy, "--top", "2"]
    code, shown, _ = predicted(*given, "--threshold", "1")
    assert code == 0
    assert "long.mp4: 0:08.0, 0 different actions" in shown
    assert "unknown (likeliest: " in shown
    assert "video_not_video" in shown
    assert "1 of 2 videos read" in shown
    code, out, _ = predicted(*given, "--csv", "--threshold", "0")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {row["unknown"] for row in rows if row["label"]} == {"false"}
    assert rows[0]["start"] == "0.0"
    assert float(rows[0]["probability_1"]) >= float(rows[0]["probability_2"])
    assert [row["reason"].split(":")[0] for row in rows if row["reason"]] == ["video_not_video"]


def test_no_readable_video_ends_with_65_and_wrong_options_with_2(toy_bundle, toy, tmp_path):
    (tmp_path / "text.avi").write_text("not a video")
    given = [tmp_path / "text.avi", "--bundle", toy_bundle, "--model", toy, "--json"]
    code, out, _ = predicted("--timeline", *given)
    assert (code, json.loads(out.splitlines()[-1])["error"]["code"]) == (65, "all_clips_failed")
    assert predicted("--window", "2", *given)[0] == 2
    assert predicted("--timeline", "--stride", "5", *given)[0] == 2
    assert predicted("--timeline", "--segments", *given)[0] == 2


def test_events_stream_and_windows_are_not_kept(clips, toy_bundle, toy, tmp_path):
    path = clips.write_clip(tmp_path / "long.mp4", frames=1500)
    done, counted = [], []
    progress = TimelineProgress(windows=lambda video, count: counted.append(count), window=lambda: done.append(1))
    with open_reader(toy_bundle, plan=window_plan(1), opening=ONE_THREAD) as reader:
        found = reader.windows(path, progress)
        for _ in range(5):
            next(found)
        read_ahead = reader.extractor._ahead
        assert len(done) == 5
        assert len(read_ahead) <= reader.extractor.most_in_work < counted[0] / 2, "the rest is not read yet"
        found.close()
        assert len(list(reader.windows(path))) == counted[0], "a reader that was left can be used again"


def test_a_file_that_is_written_to_meanwhile_is_an_error(clips, toy_bundle, toy, tmp_path):
    path = clips.write_clip(tmp_path / "growing.mp4", frames=150)

    def grow():
        with path.open("ab") as file:
            file.write(os.urandom(8))

    with open_reader(toy_bundle, opening=ONE_THREAD) as reader:
        timeline = reader.timeline(path, Answers(read_model(toy)), TimelineProgress(window=grow))
    assert timeline.reason.startswith("video_changed: ")
    assert timeline.events == ()
