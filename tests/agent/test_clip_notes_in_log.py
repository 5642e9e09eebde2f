"""The daemon's log has the doubts about a silo's clips as numbers, once, and no names."""

from types import SimpleNamespace

import pytest
from flamest.agent import new_clips
from flamest.agent.new_clips import NewClips
from flamest.agent.settings import load_agent_settings
from flamest.agent.tasks import ExtractionSummary

SETTINGS = """
state = "state"
store = "features.sqlite"
bundle = "bundle"
videos = "videos"
[work]
rescan_s = 0.1
[coordinator]
address = "fl.example.org:7443"
ca = "ca.pem"
certificate = "silo.pem"
key = "silo.key"
[labels]
folder = "top"
"""


@pytest.fixture
def silo(tmp_path, monkeypatch):
    """A daemon's search for clips whose worker answers at once, the requests that it got, and its warnings."""
    (tmp_path / "agent.toml").write_text(SETTINGS)
    requests, warnings, results = [], [], []

    def call(_, request, **__):
        requests.append(request)
        return results.pop(0)

    class Log:
        def info(self, *_, **__): ...
        def debug(self, *_, **__): ...
        def error(self, event, **fields):
            raise AssertionError(event, fields)

        def warning(self, event, **fields):
            warnings.append((event, fields))

    monkeypatch.setattr(new_clips, "log", Log())
    monkeypatch.setattr(new_clips, "time", SimpleNamespace(monotonic=iter(range(0, 10_000, 10)).__next__))
    notes = SimpleNamespace(set_state=lambda *_: None, note=lambda **_: None, status=SimpleNamespace(backends={}))
    clips = NewClips(load_agent_settings(tmp_path / "agent.toml"), SimpleNamespace(call=call), notes)
    return SimpleNamespace(clips=clips, requests=requests, warnings=warnings, results=results)


def test_doubts_are_logged_as_numbers_once_until_they_change(silo):
    first, second = {"groups_of_one": 40, "folders_two_deep": 12}, {"groups_of_one": 41}
    silo.results += [
        ExtractionSummary({"precision": "fp32"}, {}, {}, notes=notes) for notes in (first, first, second, {})
    ]
    for _ in range(4):
        silo.clips.extract_if_due()
    assert silo.warnings == [
        ("clip_notes", {**first, "see": "flamest-agent clips"}),
        ("clip_notes", {**second, "see": "flamest-agent clips"}),
    ]


def test_the_daemon_extracts_by_the_rules_of_its_settings(silo):
    silo.results.append(ExtractionSummary({"precision": "fp32"}, {}, {}))
    silo.clips.extract_if_due()
    assert silo.requests[0].rules.label_folder == "top"


def test_an_extraction_counts_the_doubts(tmp_path, toy_bundle, clips):
    from flamest.agent.extraction.report import ExtractRequest
    from flamest.agent.tasks import extract_new

    for number in (1, 2):
        clips.write_clip(tmp_path / "videos" / "walk" / f"walk_{number}.avi", frames=12 + number)
    summary = extract_new(ExtractRequest(toy_bundle, tmp_path / "videos", tmp_path / "s.sqlite", threads=1))
    assert summary.notes == {"groups_of_one": 2}
