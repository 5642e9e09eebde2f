"""The experiments' pages in a browser: they share the report's style."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from flamest.experiments.paper.failures import Failures, WrongClip, failure_sections
from flamest.experiments.paper.findings import Finding
from flamest.experiments.paper.plots import confusion_figure, figure_bytes, table_figure
from flamest.experiments.paper.report import Part, picture, write_page, write_report
from flamest.experiments.paper.tables import Row, TableResult
from PIL import Image

pytestmark = pytest.mark.pages

NAME = "FedProx with class-balanced weights, mu 0.01, and a long remark"


def tables_page(folder: Path) -> Path:
    rows = tuple(
        Row(f"{NAME} {number}", 91.2, 90.1, 96.9, note="a remark of some length " * 3, extra={"silos": 12, "mb": 3.5})
        for number in range(9)
    )
    result = TableResult("table2", "Table 2: a title of ordinary length", rows, ("a note",), ("silos", "mb"))
    part = Part(result, figure_bytes(table_figure(result), "png"))
    found = [Finding("a claim of the paper", True, True, None, "it holds, by 1.2 points")]
    write_report(folder / "report.html", "The paper's tables on the mini-world", [("Seeds", "5")], [part], found)
    return folder / "report.html"


def failures_page(folder: Path) -> Path:
    frame = io.BytesIO()
    Image.new("RGB", (160, 120)).save(frame, "JPEG")
    wrong = tuple(
        WrongClip(f"{NAME}/{number}.mp4", "a caption", NAME, NAME, (0.1,) * 8, (frame.getvalue(),) * (8 * (number % 2)))
        for number in range(4)
    )
    counts = np.arange(16).reshape(4, 4)
    table = TableResult("failures", "Failures", (), ("3 of 9 clips are misclassified.",))
    failures = Failures(table, counts, ("a", "b", "c", NAME), wrong, 4)
    png = figure_bytes(confusion_figure("Confusion", counts, failures.labels), "png")
    sections = list(failure_sections(failures, picture(png, "confusion matrix")))
    write_page(folder / "failures.html", "Clips that the model gets wrong", sections)
    return folder / "failures.html"


@pytest.mark.parametrize("write", [tables_page, failures_page])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_experiments_pages_fit_and_can_be_read(write, scheme, tmp_path, open_page):
    path = write(tmp_path)
    opened = open_page(path, scheme=scheme)
    for width in (360, 700, 1100):
        opened.page.set_viewport_size({"width": width, "height": 900})
        assert opened.overflow() <= 0, f"{width} px wide"
        assert opened.overlapping() == [], f"{width} px wide"
        assert opened.escaped() == [], f"{width} px wide"
        assert [found for found in opened.contrasts() if found[0] < 4.5] == []
        assert opened.page.locator("img:not([alt]), img[alt='']").count() == 0
