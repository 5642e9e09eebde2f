"""The demo's report page."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flamest.base.errors import StorageError
from flamest.experiments.report.chart import HEIGHT, LINE_HEIGHT, tick_rounds
from flamest.experiments.report.page import write_report
from flamest.experiments.report.record import ClipPrediction, DemoReport, RoundAccuracy, RunInputs, SiloReport

VOID = {"meta", "img", "br", "link", "hr", "input"}
PNG = b"\x89PNG\r\n\x1a\nnot really"

FULL = DemoReport(
    labels=("ball-sideways", "ball-updown"),
    chance=0.5,
    rounds=(
        RoundAccuracy(1, 0.411),
        RoundAccuracy(2, 0.877),
        RoundAccuracy(3, None),
        RoundAccuracy(4, 0.832),
    ),
    silos=(
        SiloReport("silo-north", 123, {"ball-sideways": 104, "ball-updown": 19}, 0.613),
        SiloReport("silo-south", 77, {"ball-updown": 77}, 0.501),
    ),
    test_clips=131,
    test_groups=7,
    centralised_accuracy=0.903,
    metadata_accuracy=0.523,
    bytes_per_silo_round=12_640_128,
    head_parameters=1_574_403,
    extractor_parameters=8_123_456,
    ms_per_clip=68.4,
    stages_ms={"decode": 11.2, "slow": 57.2},
    seconds=143.2,
    created="2026-11-23T13:40:12Z",
    correct=ClipPrediction(
        "s-04.mp4", (("ball-updown", 0.71), ("ball-sideways", 0.29)), "ball-updown", "a ball", (PNG,)
    ),
    doubtful=ClipPrediction("s-09.mp4", (("ball-updown", 0.62), ("ball-sideways", 0.38)), "ball-sideways", "", (PNG,)),
    wrong_clips=22,
    command="flamest-demo --silos 2 --seed 4711",
    bundle={"name": "small", "fingerprint": "6a5e658e"},
    settings={"strategy": "fedavg", "local epochs": "5"},
    seeds={"demo": 4711},
    versions={"flamest": "0.2.0"},
)
LEAST = DemoReport(labels=("a", "b"), chance=0.5, rounds=(), silos=(), test_clips=0)


class Page(HTMLParser):
    """The page as a browser sees it; fails on a tag that is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data.replace("\N{NO-BREAK SPACE}", " ") + "\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def render(report: DemoReport, folder: Path) -> str:
    write_report(folder / "report.html", report)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("report", [FULL, LEAST])
def test_the_page_is_well_formed_with_and_without_optional_parts(report: DemoReport, tmp_path: Path) -> None:
    html = render(report, tmp_path)
    assert html.startswith("<!DOCTYPE html>\n<html lang=")
    assert len(Page(html).all("h1")) == 1


def test_the_page_loads_nothing_and_has_no_script(tmp_path: Path) -> None:
    html = render(FULL, tmp_path)
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html, re.IGNORECASE)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form"}
    assert [image["src"] for image in page.all("img")] == ["data:image/png;base64,iVBORw0KGgpub3QgcmVhbGx5"] * 2


def test_every_number_of_the_report_is_on_the_page(tmp_path: Path) -> None:
    text = Page(render(FULL, tmp_path)).text
    for round_ in FULL.rounds:
        wanted = "abandoned" if round_.accuracy is None else f"{100 * round_.accuracy:.1f} %"
        assert re.search(rf"^{round_.round}\n{wanted}$", text, re.MULTILINE), round_
    assert "silo-north\n123 clips of 2 classes\n61.3 %\n83.2 %\n+21.9\n" in text
    assert "silo-south\n77 clips of 1 class\n50.1 %\n83.2 %\n+33.1\n" in text
    assert "all classes\n123\n77\nball-sideways\n104\n0\nball-updown\n19\n77\n" in text
    shares = ["50.0 %", "90.3 %", "52.3 %", "71.0 %", "29.0 %", "83.6 %"]  # the last: 83.6 % of a clip's time
    amounts = ["12,640,128", "12.64 MB", "1,574,403", "8,123,456", "68.4 ms", "11.2 ms", "57.2 ms", "2 min 23 s"]
    facts = [
        "131 held-out clips",
        "7 groups",
        "22 clips are misclassified of 131 test clips",
        "6a5e658e",
        "200 clips",
        "4711",
        "0.2.0",
        "5",
        "2026-11-23 13:40 UTC",
    ]
    missing = [piece for piece in shares + amounts + facts if piece not in text]
    assert missing == []


def test_the_headline_is_the_last_closed_round(tmp_path: Path) -> None:
    assert FULL.last == 0.832
    assert FULL.best == RoundAccuracy(2, 0.877)
    assert FULL.local_accuracy == pytest.approx(0.557)
    text = Page(render(FULL, tmp_path)).text
    assert "Federated\nthe model that the silos trained together, after the last round" in text
    assert "at its best 87.7 %, after round 2" in text
    assert "1.7 times chance" in text
    assert "0.92 of the accuracy of one model on all clips" in text
    assert "27.5 points above the silos on their own" in text


def test_missing_measurements_are_not_shown(tmp_path: Path) -> None:
    text = Page(render(LEAST, tmp_path)).text
    parts = (
        "Metadata only",
        "Centralised 0",
        "Federated",
        "How it was computed",
        "get the same",
        "clip right",
        "gains",
    )
    for absent in (*parts, "None", "nan"):
        assert absent not in text


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    evil = "</style><script>alert(1)</script><img src=x onerror='alert(1)'>&amp;\"]]>"
    report = DemoReport(
        labels=(evil, "b"),
        chance=0.5,
        rounds=(RoundAccuracy(1, 0.5),),
        silos=(SiloReport(evil, 3, {evil: 3}),),
        test_clips=3,
        stages_ms={evil: 1.0},
        created=evil,
        correct=ClipPrediction(evil, ((evil, 0.5),), evil, evil),
        settings={evil: evil},
        versions={evil: evil},
    )
    page = Page(render(report, tmp_path))
    assert page.text.count(evil) >= 8
    assert page.all("script") == page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_a_file_name_that_is_not_utf8_is_shown(tmp_path: Path) -> None:
    odd = b"caf\xe9.mp4".decode("utf-8", errors="surrogateescape")
    report = DemoReport(("a",), 1.0, (), (), 1, correct=ClipPrediction(odd, (("a", 1.0),)))
    assert "caf?.mp4" in render(report, tmp_path)


def test_the_charts_lines_have_labels_and_a_description(tmp_path: Path) -> None:
    page = Page(render(FULL, tmp_path))
    for label in ("Federated 83.2 %", "Centralised 90.3 %", "Alone, mean 55.7 %", "Chance 50.0 %"):
        assert page.text.count(label) == 2, f"{label}: at the line, and in the legend of narrow pages"
    (plot,) = [div for div in page.all("div") if div.get("class") == "plot"]
    assert plot["role"] == "img"
    described = (plot["aria-label"] or "").replace("\N{NO-BREAK SPACE}", " ")
    assert "Federated: 41.1 % in round 1, 83.2 % in round 4." in described


@pytest.mark.parametrize("base", [0.0, 0.5, 0.98])
def test_labels_of_close_lines_do_not_overlap(base: float, tmp_path: Path) -> None:
    silo = SiloReport("s", 1, {}, base + 0.01)
    report = DemoReport(
        ("a",),
        base + 0.01,
        (RoundAccuracy(1, base),),
        (silo,),
        1,
        centralised_accuracy=base + 0.02,
        metadata_accuracy=base,
    )
    labels = [
        span for span in Page(render(report, tmp_path)).all("span") if (span.get("class") or "").startswith("label")
    ]
    heights = sorted(float((label["style"] or "").removeprefix("top:").removesuffix("px")) for label in labels)
    assert len(heights) == 5
    assert min(b - a for a, b in itertools.pairwise(heights)) >= LINE_HEIGHT
    assert heights[0] >= 0
    assert heights[-1] <= HEIGHT


def test_the_line_has_a_gap_at_an_abandoned_round(tmp_path: Path) -> None:
    lines = [path["d"] for path in Page(render(FULL, tmp_path)).all("path") if path.get("class") == "line federated"]
    assert len(lines) == 2  # and a sample of it in the legend
    assert (lines[0] or "").count("M") == 2


def test_many_classes_and_many_rounds_stay_readable(tmp_path: Path) -> None:
    labels = tuple(f"class-{n}" for n in range(101))
    rounds = tuple(RoundAccuracy(n, n / 100) for n in range(1, 81))
    silo = SiloReport("s", 202, dict.fromkeys(labels, 2), 0.4)
    page = Page(render(DemoReport(labels, 1 / 101, rounds, (silo,), 10), tmp_path))
    assert "s\n202 clips of 101 classes\n40.0 %\n80.0 %\n+40.0" in page.text
    assert not [path for path in page.all("path") if path.get("class") == "dot"]


@pytest.mark.parametrize(
    ("first", "last", "ticks"),
    [
        (1, 1, [1]),
        (1, 2, [1, 2]),
        (1, 10, [2, 4, 6, 8, 10]),
        (1, 80, [1, 10, 20, 30, 40, 50, 60, 70, 80]),
        (1, 1000, [1, 200, 400, 600, 800, 1000]),
    ],
)
def test_the_axis_numbers_few_round_numbers(first: int, last: int, ticks: list[int]) -> None:
    assert tick_rounds(first, last) == ticks


@pytest.mark.parametrize(
    ("inputs", "expected", "absent"),
    [
        (RunInputs(), "The clips are rendered and the networks are small", "bundle"),
        (RunInputs(videos="clips", bundle="big"), "clips are those in clips; the networks are those of", "rendered"),
        (RunInputs(bundle="big"), "The clips are rendered; the networks are those of the bundle big", "small"),
        (RunInputs(videos="clips"), "The networks are small ones", "clips are rendered"),
    ],
)
def test_the_first_lines_say_what_was_used(inputs: RunInputs, expected: str, absent: str, tmp_path: Path) -> None:
    text = Page(render(dataclasses.replace(FULL, inputs=inputs), tmp_path)).text
    beginning = text[: text.index("Accuracy on held-out clips")]
    assert expected in beginning
    assert absent not in beginning


def test_overlapping_stages_are_explained_next_to_the_time(tmp_path: Path) -> None:
    overlapping = dataclasses.replace(FULL, ms_per_clip=33.2, stages_ms={"decode": 50.0, "cnn": 33.4})
    text = Page(render(overlapping, tmp_path)).text
    assert "33.2 ms\nfrom one finished clip to the next, on average, although" in text
    assert "add up to 83.4 ms" in text
    assert "clips overlap" in text
    assert "clips overlap" not in Page(render(FULL, tmp_path)).text  # its stages add up to the time


def test_without_a_wrong_clip_the_page_says_so(tmp_path: Path) -> None:
    sure = ClipPrediction("b.mp4", (("ball-updown", 0.4),), "ball-updown")
    text = Page(render(dataclasses.replace(FULL, wrong_clips=0, doubtful=sure), tmp_path)).text
    assert "Two test clips\nNo clip of 131 test clips is misclassified." in text
    assert "✓ Right (least certain)" in text
    assert "Wrong" not in text


def test_a_truth_outside_the_shown_classes_is_named(tmp_path: Path) -> None:
    wrong = ClipPrediction("b.mp4", (("ball-updown", 0.4),), "ball-sideways")
    text = Page(render(dataclasses.replace(FULL, doubtful=wrong), tmp_path)).text
    assert "ball-sideways is not among the 1 most probable classes." in text


@pytest.mark.parametrize(
    ("alone", "verdict", "gain"),
    [
        (0.5, "Every silo gains.", "+33.2"),
        (0.832, "No silo loses.", "0.0"),
        (0.9, "1 silo loses by joining.", "\N{MINUS SIGN}6.8"),
    ],
)
def test_a_silos_gain_has_its_sign(alone: float, verdict: str, gain: str, tmp_path: Path) -> None:
    silos = (SiloReport("a", 3, {}, alone), SiloReport("b", 3, {}, 0.1))
    text = Page(render(dataclasses.replace(FULL, silos=silos), tmp_path)).text
    assert verdict in text
    assert f"a\n3 clips\n{100 * alone:.1f} %\n83.2 %\n{gain}\n" in text


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        write_report(tmp_path / "absent" / "report.html", LEAST)
