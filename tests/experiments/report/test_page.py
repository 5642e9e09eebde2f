"""The demo's report page."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flamest.base.errors import StorageError
from flamest.experiments.report.page import ClipPrediction, DemoReport, RoundAccuracy, SiloReport, write_report

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
    prediction=ClipPrediction(
        "s-04.mp4", (("ball-updown", 0.71), ("ball-sideways", 0.29)), "ball-updown", "a ball", (PNG,)
    ),
    settings={"strategy": "fedavg", "local epochs": "5"},
    seeds={"demo": 4711},
    versions={"flamest": "0.1.0"},
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
    assert [image["src"] for image in page.all("img")] == ["data:image/png;base64,iVBORw0KGgpub3QgcmVhbGx5"]


def test_every_number_of_the_report_is_on_the_page(tmp_path: Path) -> None:
    text = Page(render(FULL, tmp_path)).text
    for round_ in FULL.rounds:
        wanted = "abandoned" if round_.accuracy is None else f"{100 * round_.accuracy:.1f} %"
        assert re.search(rf"^{round_.round}\n{wanted}$", text, re.MULTILINE), round_
    for silo in FULL.silos:
        assert silo.local_accuracy is not None
        held = "\n".join(str(silo.clips_per_class.get(label, 0)) for label in FULL.labels)
        row = f"{silo.name}\n{silo.clips}\n{len(silo.clips_per_class)}\n{held}\n{100 * silo.local_accuracy:.1f} %\n"
        assert row in text
    shares = ["50.0 %", "90.3 %", "52.3 %", "71.0 %", "29.0 %", "83.6 %"]  # the last: 83.6 % of a clip's time
    amounts = ["12,640,128", "12.64 MB", "1,574,403", "8,123,456", "68.4 ms", "11.2 ms", "57.2 ms", "2 min 23 s"]
    facts = ["131 clips", "7 groups", "200 clips", "4711", "0.1.0", "5", "2026-11-23 13:40 UTC"]
    missing = [piece for piece in shares + amounts + facts if piece not in text]
    assert missing == []


def test_the_headline_is_the_last_closed_round(tmp_path: Path) -> None:
    assert FULL.last == 0.832
    assert FULL.best == RoundAccuracy(2, 0.877)
    assert FULL.local_accuracy == pytest.approx(0.557)
    text = Page(render(FULL, tmp_path)).text
    assert "Federated, last round\n83.2 %" in text
    assert "Federated, best (round 2)\n87.7 %" in text
    assert "1.7 times chance" in text
    assert "0.92 of the centralised model" in text
    assert "27.5 points above the silos on their own" in text


def test_missing_measurements_are_not_shown(tmp_path: Path) -> None:
    text = Page(render(LEAST, tmp_path)).text
    for absent in ("Metadata only", "Centralised 0", "Federated", "What it costs", "One held-out clip", "None", "nan"):
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
        prediction=ClipPrediction(evil, ((evil, 0.5),), evil, evil),
        settings={evil: evil},
        versions={evil: evil},
    )
    page = Page(render(report, tmp_path))
    assert page.text.count(evil) >= 8
    assert page.all("script") == page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_a_file_name_that_is_not_utf8_is_shown(tmp_path: Path) -> None:
    odd = b"caf\xe9.mp4".decode("utf-8", errors="surrogateescape")
    report = DemoReport(("a",), 1.0, (), (), 1, prediction=ClipPrediction(odd, (("a", 1.0),)))
    assert "caf?.mp4" in render(report, tmp_path)


def test_the_charts_lines_have_labels_and_a_description(tmp_path: Path) -> None:
    page = Page(render(FULL, tmp_path))
    assert [svg["role"] for svg in page.all("svg")] == ["img"]
    for label in ("Federated 83.2 %", "Centralised 90.3 %", "Local only, mean 55.7 %", "Chance 50.0 %"):
        assert label in page.text
    assert "Federated: 41.1 % in round 1, 83.2 % in round 4." in page.text


@pytest.mark.parametrize("base", [0.0, 0.5, 0.98])
def test_labels_of_close_lines_do_not_overlap(base: float, tmp_path: Path) -> None:
    silo = SiloReport("s", 1, {}, base + 0.01)
    report = DemoReport(("a",), base + 0.01, (RoundAccuracy(1, base),), (silo,), 1, None, base + 0.02, base)
    labels = [text for text in Page(render(report, tmp_path)).all("text") if (text["class"] or "").startswith("label")]
    heights = sorted(float(text["y"] or "nan") for text in labels)
    assert len(heights) == 5
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 16
    assert heights[0] > 10
    assert heights[-1] < 370


def test_the_line_has_a_gap_at_an_abandoned_round(tmp_path: Path) -> None:
    lines = [path["d"] for path in Page(render(FULL, tmp_path)).all("path") if path.get("class") == "line federated"]
    assert len(lines) == 1
    assert (lines[0] or "").count("M") == 2


def test_many_classes_and_many_rounds_stay_readable(tmp_path: Path) -> None:
    labels = tuple(f"class-{n}" for n in range(101))
    rounds = tuple(RoundAccuracy(n, n / 100) for n in range(1, 81))
    silo = SiloReport("s", 202, dict.fromkeys(labels, 2), 0.4)
    page = Page(render(DemoReport(labels, 1 / 101, rounds, (silo,), 10), tmp_path))
    assert "class-7" not in page.text
    assert "s\n202\n101\n40.0 %" in page.text
    assert len(page.all("circle")) == 1
    ticks = [text for text in page.all("text") if text.get("class") == "tick middle"]
    assert len(ticks) <= 12


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        write_report(tmp_path / "absent" / "report.html", LEAST)
