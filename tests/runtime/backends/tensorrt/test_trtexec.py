"""The line that repeats a build states every option of it, and a profile for every use of the graph."""

import shlex
from pathlib import Path

from flamest.runtime.backends.tensorrt.trtexec import trtexec_command
from flamest.runtime.bundle.graph_records import AxisRange, EngineOptions, Graph, GraphUse, Tensor

BATCH = AxisRange(1, 2, 16)
GRAPH = Graph(
    "my cnn.onnx", 18, (Tensor("frames", "uint8", ("batch", 8, 64, 64, 3)),), (), {"batch": BATCH}, "fp32", {}
)
TEXT = Graph(
    "text.onnx",
    18,
    (Tensor("token_ids", "int64", ("batch", "tokens")), Tensor("past_key_00", "float32", ("batch", 2, "past", 8))),
    (),
    {"batch": BATCH, "tokens": AxisRange(1, 1, 64), "past": AxisRange(0, 10, 64)},
    "fp32",
    {},
    uses=(
        GraphUse("step", {"batch": BATCH, "tokens": AxisRange(1, 1, 1), "past": AxisRange(19, 19, 19)}),
        GraphUse("read", {"batch": BATCH, "tokens": AxisRange(1, 12, 64), "past": AxisRange(0, 0, 1)}),
    ),
)


def test_every_option_of_the_build_is_in_the_line():
    options = EngineOptions(5, "same-cc", True, True, False, 512, max_batch=8)
    words = shlex.split(trtexec_command(Path("/b/my cnn.onnx"), GRAPH, options, timing_cache=Path("t")))
    assert words == [
        "trtexec",
        "--onnx=/b/my cnn.onnx",
        "--stronglyTyped",
        "--builderOptimizationLevel=5",
        "--noTF32",
        "--versionCompatible",
        "--stripWeights",
        "--hardwareCompatibilityLevel=sameComputeCapability",
        "--memPoolSize=workspace:512M",
        "--minShapes=frames:1x8x64x64x3",
        "--optShapes=frames:2x8x64x64x3",
        "--maxShapes=frames:8x8x64x64x3",
        "--timingCacheFile=t",
        "--useCudaGraph",
        "--noDataTransfers",
    ]
    assert "--noTF32" not in trtexec_command(Path("x"), GRAPH, EngineOptions(tf32=True))


def test_each_use_has_a_profile_in_the_line():
    line = trtexec_command(Path("text.onnx"), TEXT, EngineOptions(), run=False)
    assert line.endswith("--skipInference")
    _, step, read = line.split("--profile=")
    assert step.startswith("0 --minShapes=token_ids:1x1,past_key_00:1x2x19x8 --optShapes=token_ids:2x1,")
    assert read.startswith("1 --minShapes=token_ids:1x1,past_key_00:1x2x0x8 --optShapes=token_ids:2x12,")
    assert "--maxShapes=token_ids:16x64,past_key_00:16x2x1x8" in read
