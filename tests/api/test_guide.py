"""The guide of the Python API: its code runs in the order in which it is read, and its tables say what there is."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path
from typing import get_args

import flamest as fl
import numpy as np
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.api.options import StrategyName
from flamest.experiments.miniworld.videos import ClipKey, render_recording
from flamest.experiments.strategy_names import STRATEGIES
from flamest.fedproto.records import Strategy
from flamest.runtime.clip_records import Clip

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "python-api.md").read_text()
ANNOTATIONS = """<annotations><version>1.1</version><meta><task><source>night.mp4</source></task></meta>
<track id="0" label="ball_lifting"><box frame="5" outside="0"/><box frame="30" outside="1"/></track></annotations>"""


def code_blocks() -> list[str]:
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", GUIDE, re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


def test_the_guides_code_runs_as_it_is_read(videos, tmp_path, monkeypatch, capsys):
    sample = fl.load("miniworld")
    some = sample[np.isin(sample.y, range(5))]
    with FeatureStore.open(tmp_path / "features.sqlite") as store:
        for row in range(len(some)):
            clip = Clip(Path(f"{row}.mp4"), some.clips[row], some.names[row], some.groups[row])
            kind = (some.vlm_width, some.fingerprint, some.precision)
            store.add_rows([(f"{row}.mp4", FeatureRow(clip, some.x[row], *kind))])
    shutil.copytree(videos, tmp_path / "videos")
    keys = [ClipKey(3, 0, "ball", "lifting", 0), ClipKey(3, 0, "box", "crossing", 0)]
    render_recording(tmp_path / "videos" / "night.mp4", keys)
    (tmp_path / "annotations.xml").write_text(ANNOTATIONS)
    monkeypatch.chdir(tmp_path)
    names = {"np": np, "x": some.x, "names": some.names, "videos": list(some.groups)}
    blocks = code_blocks()
    assert len(blocks) >= 8
    for block in blocks:
        exec(compile(block, "docs/guides/python-api.md", "exec"), names)
    assert (tmp_path / "model.safetensors").exists()
    assert str(names["found"].name) == "videos/night.mp4#t=0.5,3"
    assert names["found"].label
    assert names["done"].classes == {"ball_lifting": {"new": 1, "changed": 0, "equal": 0, "conflicting": 0}}
    assert names["run"].strategy == "fedavg"
    assert float(capsys.readouterr().out.splitlines()[0]) > 0.2


def test_the_guide_names_everything_that_is_public():
    assert [name for name in fl.__all__ if not re.search(rf"`(fl\.)?{name}\b", GUIDE)] == []


def test_the_guides_short_names_stand_for_what_they_say():
    rows = dict(re.findall(r'^\| `"(\w+)"` \| (.+) \|$', GUIDE, re.MULTILINE))
    assert rows.keys() == STRATEGIES.keys() == set(get_args(StrategyName))
    for name, meaning in rows.items():
        settings = re.findall(r'(\w+)="?([\w.]+)"?', meaning)
        defaults = {key: str(value) for key, value in STRATEGIES[name].items() if key != "name"}
        assert dict(settings) == defaults
        assert set(STRATEGIES[name]) <= set(Strategy.__struct_fields__)
