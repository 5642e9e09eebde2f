"""Pictures of tables and curves as PNG and SVG. The only module that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...base.errors import MissingExtra
from ...base.files import write_atomic
from .tables import TableResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, PRINTED, SOFT = "#0b6e6e", "#b4530a", "#8d97a3"
COLOURS = (OURS, PRINTED, "#7a4fa3", "#5b636d", "#2f6db0", "#a03a5a", "#6f7d1f", "#444444")
DOTS = 150  # per inch
MAX_LABEL = 32  # characters of a class in the confusion matrix


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches; no display is needed. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", extra="experiments") from error
    return Figure(figsize=(width, height), layout="constrained")


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The picture as a file of ``kind`` (png, svg); the same figure gives the same bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "flamest", "svg.fonttype": "none"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=DOTS, metadata=metadata)
    return out.getvalue()


def write_figure(figure: Figure, stem: Path) -> None:
    """``stem``.png and ``stem``.svg. Raises StorageError."""
    for kind in ("png", "svg"):
        write_atomic(stem.with_name(f"{stem.name}.{kind}"), figure_bytes(figure, kind))


def table_figure(result: TableResult) -> Figure:
    """A bar per row (last), its best and interval, and the paper's number as a marker."""
    rows = list(result.rows)
    figure = new_figure(8.5, 1.2 + 0.34 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    axes.barh(places, [row.last or 0.0 for row in rows], color=OURS, height=0.62, label="last")
    drawn = [(place, row) for place, row in zip(places, rows, strict=True)]
    for place, row in drawn:
        if row.last is None:
            status = axes.text(
                0.01, place, row.status, va="center", fontsize=8, color=SOFT, transform=axes.get_yaxis_transform()
            )
            status.set_in_layout(False)
        elif row.last_interval is not None:
            axes.errorbar(row.last, place, xerr=row.last_interval, color="black", capsize=3, linewidth=1)
    best = [(row.best, place) for place, row in drawn if row.best is not None]
    printed = [(row.paper, place) for place, row in drawn if row.paper is not None]
    if best:
        axes.plot(*zip(*best, strict=True), "|", color="black", markersize=11, label="best")
    if printed:
        axes.plot(*zip(*printed, strict=True), "D", color=PRINTED, markersize=5, label="paper")
    axes.set_yticks(places, [row.name for row in rows], fontsize=8)
    if result.unit == "%":
        axes.set_xlim(0, 103)
        axes.set_xlabel("accuracy on test, %")
    else:
        if any(row.last for row in rows):
            axes.set_xscale("log")
        axes.set_xlabel(result.unit)
    axes.set_title(result.title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if best or printed:
        figure.legend(fontsize=8, loc="outside lower left", ncols=3, frameon=False)
    return figure


def curves_figure(title: str, curves: Mapping[str, Sequence[Sequence[float]]], across: str) -> Figure:
    """Accuracy (0 to 1) per step: the mean of each curve's runs, and the runs as thin lines behind it."""
    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    for (name, runs), colour in zip(curves.items(), COLOURS, strict=False):
        for run in runs if len(runs) > 1 else ():
            axes.plot(np.arange(1, len(run) + 1), 100 * np.asarray(run), color=colour, alpha=0.25, linewidth=0.8)
        mean = 100 * np.mean(np.asarray(runs), axis=0)
        axes.plot(np.arange(1, len(mean) + 1), mean, color=colour, linewidth=2, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=10, loc="left")
    figure.legend(fontsize=8, loc="outside lower left", ncols=3, frameon=False)  # never over a line
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def scatter_figure(title: str, panels: Sequence[tuple[str, npt.NDArray[np.float32], Sequence[str]]]) -> Figure:
    """Points [n, 2] of each panel, coloured by their label."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.1 * columns, 3.1 * rows + 0.5)
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, (name, points, labels) in zip(grid, panels, strict=False):
        for label, colour, mark in zip(sorted(set(labels)), COLOURS, "ovs^", strict=False):
            rows_of = np.array([found == label for found in labels])
            axes.scatter(points[rows_of, 0], points[rows_of, 1], s=11, color=colour, marker=mark, label=label)
        axes.set_title(name, fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    grid[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def confusion_figure(title: str, counts: npt.NDArray[np.int64], labels: Sequence[str]) -> Figure:
    """``counts`` [classes, classes]: truth down, prediction across."""
    names = [label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…" for label in labels]
    shown = len(labels) <= 60
    margin = 1.6 + (0.065 * max(map(len, names)) if shown else 0.0)
    size = min(16.0, margin + max(1.5, 0.26 * len(labels)))
    figure = new_figure(size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    if shown:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(title, fontsize=10)
    return figure
