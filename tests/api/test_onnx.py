"""A model's ONNX graphs, served next to predict on the same videos."""

from __future__ import annotations

import re
from pathlib import Path

import flamest as fl
import numpy as np
import pytest
from flamest.base.files import sha256_file

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "serving.md"


def test_served_videos_get_the_probabilities_of_predict(extracted, videos, tmp_path):
    """From video files on, with the packaged bundle: predict, and the fused graph on the two networks' vectors."""
    import onnxruntime

    f, _ = extracted
    model = fl.train(f, rounds=2, epochs=5, hidden=(16,), progress=False).model
    model.save(tmp_path / "model.safetensors")
    parts = (f.vlm.x.shape[1], f.cnn.x.shape[1])
    files = fl.load_model(tmp_path / "model.safetensors").export_onnx(tmp_path / "model.onnx", parts=parts)
    assert [file.name for file in files] == ["model.onnx", "model.fused.onnx"]
    clips = sorted(videos.glob("*/*.mp4"))[:3]
    shown = fl.predict(clips, model=tmp_path / "model.safetensors", bundle="miniworld", top=4, progress=False)
    served = fl.open_bundle().extract(clips[0].parent.parent, store=tmp_path / "s.sqlite", threads=1, progress=False)
    head, fused = (onnxruntime.InferenceSession(file) for file in files)
    by_fused = fused.run(["probabilities"], {"vlm": served.vlm.x, "cnn": served.cnn.x})[0]
    by_head = head.run(["probabilities"], {"x": served.x})[0]
    assert np.abs(by_fused - by_head).max() <= 1e-7
    found = dict(zip(served.clips, by_fused, strict=True))
    for each in shown:
        row = found[sha256_file(each.video)]
        assert {one.label: pytest.approx(one.probability, abs=1e-6) for one in each.labels} == dict(
            zip(model.labels, row.tolist(), strict=True)
        )


def test_the_guides_code_serves_a_model(split, tmp_path, monkeypatch, capsys):
    silos, test = split
    model = fl.simulate(silos, test=test, hidden=(16,), rounds=1, epochs=1, progress=False).model
    model.export_onnx(tmp_path / "model.onnx", parts=(10, 14))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    exec(compile(code, GUIDE.name, "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] in model.labels for line in printed] == [True] * 4


def test_a_handed_in_head_has_no_graph(split, tmp_path):
    class Linear:
        def __init__(self, inputs, classes):
            self.shapes = {"weight": (classes, inputs)}

        def forward(self, params, x):
            return x @ params["weight"].T, lambda gradient: {"weight": gradient.T @ x}

    silos, test = split
    model = fl.simulate(silos, test=test, head=Linear, rounds=1, epochs=1, progress=False).model
    with pytest.raises(fl.FlamestError, match="a model file describes a built-in head") as refused:
        model.export_onnx(tmp_path / "m.onnx")
    assert refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_unknown_parts_gives_the_head_alone(split, tmp_path):
    silos, test = split
    model = fl.simulate(silos, test=test, hidden=(16,), rounds=1, epochs=1, progress=False).model
    assert [file.name for file in model.export_onnx(str(tmp_path / "m.onnx"))] == ["m.onnx"]
    with pytest.raises(fl.FlamestError, match="expected widths that add up to the head's 24 inputs"):
        model.export_onnx(tmp_path / "m.onnx", parts=(3, 4))
    with pytest.raises(fl.FlamestError, match=r"ends in \.onnx"):
        model.export_onnx(tmp_path / "m.safetensors")
