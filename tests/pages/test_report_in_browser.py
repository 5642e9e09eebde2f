"""The demo's report page in a browser: what overlaps, overflows, is too faint, or cannot be reached."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from flamest.experiments.report.page import write_report
from flamest.experiments.report.record import ClipPrediction, DemoReport, RoundAccuracy, RunInputs, SiloReport

pytestmark = pytest.mark.pages

LONG = "mounting-the-left-rear-wheel-of-a-delivery-van_while_it_is_raised"

FOCUSED = "() => [document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"


def picture() -> bytes:
    """A frame of 160 × 120 pixels."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (160, 120), (120, 110, 90)).save(out, "JPEG")
    return out.getvalue()


def made_up(*, silos: int = 4, classes: int = 25, rounds: int = 10, name: str = "", level: float = 0.9) -> DemoReport:
    """A report with every part, of that size; ``name`` is appended to all names."""
    labels = tuple(f"class_{number}{name}" for number in range(classes))
    learned = [level * (1 - 0.5**number) for number in range(1, rounds + 1)]
    frames = (picture(),) * 8
    likely = tuple((label, 0.7 * 0.3**place) for place, label in enumerate(labels[:5]))
    return DemoReport(
        labels=labels,
        chance=1 / classes,
        rounds=tuple(RoundAccuracy(number, share) for number, share in enumerate(learned, start=1)),
        silos=tuple(
            SiloReport(
                f"silo-{number}{name}",
                1234 * (number + 1),
                {label: (place * 7 + number * 3) % 11 for place, label in enumerate(labels)},
                level * min(0.4 + 0.08 * number, 1.05),
            )
            for number in range(silos)
        ),
        test_clips=12_345,
        test_groups=17,
        inputs=RunInputs(name or None, name or None),
        centralised_accuracy=level + 0.001,
        metadata_accuracy=1 / classes + 0.002,
        bytes_per_silo_round=12_640_128,
        head_parameters=1_574_403,
        extractor_parameters=258_123_456,
        ms_per_clip=33.2,
        stages_ms={"decode": 50.1, "keyframes": 5.0, "vision": 12.0, "caption": 9.8, "cnn": 6.1},
        seconds=143.2,
        created="2026-11-23T13:40:12Z",
        correct=ClipPrediction(f"{labels[0]}/g01_c00.mp4", likely, labels[0], "a red ball above a grey box", frames),
        doubtful=ClipPrediction(f"{labels[1]}/g02_c00.mp4", likely, labels[1], "a box on bricks " * 4, frames),
        wrong_clips=3,
        command="flamest-demo --silos 4 --rounds 10 --beta 0.6 --test-share 0.3 --seed 0 --threads 1",
        bundle={"name": f"bundle{name}", "fingerprint": "6a5e658e2d6d5efe" * 4},
        settings={"split over silos": "Dirichlet, beta 0.6", "local training": "5 epochs per round, batch 16, Adam"},
        seeds={"demo": 0, "extraction": 0},
        versions={"Python": "3.11.2", "flamest": "0.2.0", "numpy": "2.4.1", "machine": "x86_64, 2 cores"},
    )


SIZES: tuple[dict[str, Any], ...] = (
    {"silos": 2, "classes": 2, "rounds": 1},
    {},
    {"silos": 12, "classes": 12, "rounds": 80},
    {"silos": 7, "classes": 101, "rounds": 33, "name": LONG},
    {"silos": 12, "classes": 40, "rounds": 1000, "name": "-" + "W" * 90, "level": 0.02},
    {"silos": 3, "classes": 51, "rounds": 29, "level": 0.999},
)


def written(folder: Path, **size: Any) -> Path:
    write_report(folder / "report.html", made_up(**size))
    return folder / "report.html"


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(str(value)[:8] for value in size.values()) or "demo")
def test_no_text_lies_over_another_and_no_page_scrolls_sideways(size, tmp_path, open_page):
    path = written(tmp_path, **size)
    opened = open_page(path)
    for width in (320, 360, 540, 700, 820, 1100, 1600):
        opened.page.set_viewport_size({"width": width, "height": 900})
        assert opened.overflow() <= 0, f"{width} px wide"
        assert opened.overlapping() == [], f"{width} px wide"
        assert opened.escaped() == [], f"{width} px wide"


@pytest.mark.parametrize("base", [0.0, 0.33, 0.97])
def test_labels_of_equal_lines_lie_apart_in_the_chart(base, tmp_path, open_page):
    report = DemoReport(
        ("a", "b"),
        base,
        tuple(RoundAccuracy(number, base) for number in range(1, 4)),
        (SiloReport("s", 1, {}, base),),
        10,
        centralised_accuracy=base,
        metadata_accuracy=base,
    )
    write_report(tmp_path / "report.html", report)
    opened = open_page(tmp_path / "report.html")
    assert opened.page.locator(".ends .label").count() == 5
    assert opened.overlapping() == []


def test_the_finder_of_overlaps_finds_one(tmp_path, open_page):
    (tmp_path / "x.html").write_text("<p>first</p><p style='margin-top:-1.7em'>second</p><p>third</p>")
    assert open_page(tmp_path / "x.html").overlapping() == [("first", "second")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_a_contrast_of_four_and_a_half(scheme, tmp_path, open_page):
    opened = open_page(written(tmp_path), scheme=scheme)
    for summary in opened.page.locator("summary").all():
        summary.click()
    contrasts = opened.contrasts()
    assert len(contrasts) > 100
    assert [found for found in contrasts if found[0] < 4.5] == []


def test_the_two_colour_schemes_differ(tmp_path, open_page):
    path = written(tmp_path)
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark, light = (open_page(path, scheme=scheme).page.evaluate(ground) for scheme in ("dark", "light"))
    assert dark != light


def test_a_keyboard_opens_the_tables_and_sees_where_it_is(tmp_path, open_page):
    page = open_page(written(tmp_path)).page
    reached = []
    while page.locator("details[open]").count() < 2 and len(reached) < 10:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        if reached[-1][0] == "SUMMARY":
            page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 2
    assert {outline for _, outline in reached} == {"solid"}


@pytest.mark.parametrize("width", [360, 1100])
def test_assistive_technology_reads_the_silos_as_a_table(width, tmp_path, open_page):
    page = open_page(written(tmp_path), width=width).page
    gains = page.get_by_role("table").first
    assert gains.get_by_role("columnheader").all_inner_texts() == ["Silo", "Alone", "Federated", "Gain"]
    assert gains.get_by_role("rowheader").count() == 4
    cells = gains.get_by_role("row").nth(1).get_by_role("cell").all_inner_texts()
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in cells] == ["36.0 %", "89.9 %", "+53.9"]


def test_pictures_have_words_and_tables_have_heads(tmp_path, open_page):
    page = open_page(written(tmp_path)).page
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("[role=img]:not([aria-label])").count() == 0
    assert page.locator("table:not(:has(thead th[scope=col]))").count() == 0
    assert page.locator("html[lang=en]").count() == page.locator("h1").count() == page.locator("main").count() == 1


def test_paper_shows_the_folded_tables_on_white(tmp_path, open_page):
    page = open_page(written(tmp_path), scheme="dark", scripts=False).page
    page.emulate_media(media="print")
    assert page.locator("details table").first.is_visible()
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf(format="A4")) > 10_000
