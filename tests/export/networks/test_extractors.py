"""The extractors of Table 1: their parameters to the last one, and the paper's slips as slips."""

from __future__ import annotations

import json

import pytest
from flamest.base.errors import UsageError
from flamest.export.cli.main import app
from flamest.export.networks.extractors import EXTRACTORS, count_networks, count_parameters, find_extractor
from typer.testing import CliRunner

# docs/paper.md, parameter counts, which tells slow_r50's count from slowfast_r50's.
COUNTS = {
    "blip": (247_414_076, 223_971_644),
    "clip": (151_277_313, 151_277_313),
    "resnet3d": (33_371_472, 33_371_472),
    "i3d": (28_043_472, 28_043_472),
    "slow": (32_454_096, 32_454_096),
    "videomae": (86_304_869, 86_304_869),
    "resnet18": (11_689_512, 11_689_512),
    "slowfast_r50": (34_566_488, 34_566_488),
}
EXPECTED = {
    "blip": ("1", 768, 247_414_076),
    "clip": ("1", 1024, 151_277_313),
    "resnet3d": ("3", 512, 33_371_472),
    "i3d": ("8", 2048, 28_043_472),
    "slow": ("8", 2048, 32_454_096),
    "slow-uniform": ("8", 2048, 32_454_096),
    "videomae": ("16", 768, 86_304_869),
    "blip-text": ("1", 768, 247_414_076),
    "blip+slow": ("9 (1+8)", 2816, 279_868_172),
    "blip+i3d": ("9 (1+8)", 2816, 275_457_548),
    "blip+resnet3d": ("4 (1+3)", 1280, 280_785_548),
    "blip-text+slow": ("9 (1+8)", 2816, 279_868_172),
    "blip-text+i3d": ("9 (1+8)", 2816, 275_457_548),
    "blip-text+resnet3d": ("4 (1+3)", 1280, 280_785_548),
}


def test_every_network_has_the_papers_parameters_to_the_last_one():
    assert {name: (count.parameters, count.stored) for name, count in count_networks().items()} == COUNTS


def test_every_extractor_has_the_papers_frames_dimension_and_parameters():
    counts = count_parameters()
    found = {name: (entry.frames, entry.dimension, counts[name]) for name, entry in EXTRACTORS.items()}
    assert found == EXPECTED


def test_where_the_paper_prints_another_number_a_slip_is_noted():
    """Row 6 prints slowfast_r50; its dimension of VideoMAE and two classifier counts are misprints."""
    counts = count_parameters()
    rows = {entry.paper.number: entry for entry in EXTRACTORS.values() if entry.paper is not None}
    assert sorted(rows) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]  # 3 and 15 are no frozen extractors
    head = {512: "394,241", 768: "525,313", 1024: "656,385", 1280: "787,457", 2048: "1,180,673", 2816: "1,573,889"}
    for entry in rows.values():
        right = (counts[entry.name], entry.dimension, head[entry.dimension])
        printed = (entry.paper.parameters, entry.paper.dimension, entry.paper.head_parameters)
        assert right == printed or entry.paper.slips, entry.name
    assert rows[6].paper.parameters == COUNTS["slowfast_r50"][0]
    assert any("slowfast_r50" in slip for slip in rows[6].paper.slips)


def test_the_parts_of_a_pair_are_extractors_of_their_own():
    for name, entry in EXTRACTORS.items():
        assert name == "+".join(part for part in (entry.vlm, entry.cnn) if part is not None)
        assert sum(EXTRACTORS[part].dimension for part in name.split("+")) == entry.dimension
    assert EXTRACTORS["blip-text+i3d"].needed_networks == ("blip", "i3d", "slow")
    assert EXTRACTORS["slow-uniform"].needed_networks == ("slow",)


def test_the_list_shows_the_papers_parameters_next_to_ours():
    said = CliRunner().invoke(app, ["extractors", "--json"])
    rows = {row["name"]: row for row in json.loads(said.stdout.splitlines()[-1])["extractors"]}
    assert list(rows) == list(EXTRACTORS)
    assert (rows["slow"]["parameters"], rows["slow"]["paper"]["parameters"]) == (32_454_096, 34_566_488)
    assert rows["slow-uniform"]["paper"] is None
    (line,) = (line for line in CliRunner().invoke(app, ["extractors"]).stdout.splitlines() if line.startswith("slow "))
    assert line.split()[:5] == ["slow", "8", "2,048", "32,454,096", "34,566,488"]


def test_an_unknown_extractor_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"--extractor slowfast: no such extractor, expected one of blip, clip"):
        find_extractor("slowfast")
