"""GELUs come in the order of operators that ONNX Runtime fuses, and nothing else is touched."""

import numpy as np
import onnx
import onnxruntime
import torch
from flamest.export.graphs.export import write_graph
from flamest.export.graphs.fusible import order_gelus
from flamest.export.graphs.spec import GraphSpec
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.bundle.graph_records import AxisRange, Tensor


def spec_of(module):
    tensors = (Tensor("x", "float32", ("batch", 8)),)
    return GraphSpec("net", module, tensors, (Tensor("y", "float32", ("batch", 8)),), {"batch": AxisRange(1, 1, 4)})


def operators_after_fusion(path, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options)
    return {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}


def test_an_exported_gelu_is_fused_and_gives_the_same(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8)).eval()
    write_graph(spec_of(net), tmp_path)
    found = operators_after_fusion(tmp_path / "net.onnx", tmp_path)
    assert "Erf" not in found
    assert found & {"Gelu", "BiasGelu"}
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(open_session(tmp_path / "net.onnx").run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_half_outside_a_gelu_stays_as_it_is(tmp_path):
    class Other(torch.nn.Module):
        def forward(self, x):
            return x * (0.5 * (1 + torch.tanh(x)))

    write_graph(spec_of(Other().eval()), tmp_path)
    model = onnx.load(tmp_path / "net.onnx")
    before = model.SerializeToString()
    assert order_gelus(model) == 0
    assert model.SerializeToString() == before
