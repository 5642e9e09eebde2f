"""ONNX Runtime's telemetry is off."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys
import numpy as np
from onnx import TensorProto, helper
{first}
from flamest.runtime.backends.onnxruntime_cpu import open_session

values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("a", "b")]
graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
session = open_session(model.SerializeToString(), threads=1)
assert session.run({{"a": np.array([-1, 2], np.float32)}})["b"].tolist() == [0, 2]
"""


def test_telemetry_is_off_before_onnxruntime_is_imported(tmp_path):
    """With telemetry on, it keeps an identifier of the machine in the user's cache folder from its first session on."""
    silent = {"ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "GITHUB_ACTIONS", "TF_BUILD"}
    env = {name: value for name, value in os.environ.items() if name not in silent}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = 'import flamest, os; assert os.environ["ORT_DISABLE_TELEMETRY"] == "1" and "onnxruntime" not in sys.modules'
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*")) == []
