"""Ranges of an engine's inputs: sums of axes, a past of length 0, and sizes outside of them."""

import dataclasses

import msgspec
import pytest
from flamest.base.errors import InvariantError
from flamest.runtime.backends.tensorrt.profile import (
    InputRange,
    largest_batch,
    nearest_profile,
    profiles,
    range_problem,
    settled_options,
)
from flamest.runtime.bundle.graph_records import AxisRange, EngineOptions, Graph, GraphUse, Tensor
from flamest.runtime.pipeline_options import PipelineMachine, PipelineOptions, caption_bytes, choose_sizes

GRAPH = Graph(
    file="text.onnx",
    opset=18,
    inputs=(
        Tensor("token_ids", "int64", ("batch", "tokens")),
        Tensor("mask", "float32", ("batch", 1, "tokens", "past + tokens")),
        Tensor("past_key_00", "float32", ("batch", 2, "past", 8)),
        Tensor("cross_key_00", "float32", ("batch", 2, 8, "patches")),
    ),
    outputs=(Tensor("present_key_00", "float32", ("batch", 2, "past + tokens", 8)),),
    axes={
        "batch": AxisRange(1, 1, 16),
        "tokens": AxisRange(1, 1, 64),
        "past": AxisRange(0, 10, 64),
        "patches": AxisRange(577, 577, 577),
    },
    precision="fp32",
    dtype_histogram={},
)


def test_every_input_has_its_smallest_usual_and_largest_shape():
    assert profiles(GRAPH)[-1].inputs == (
        InputRange("token_ids", (1, 1), (1, 1), (16, 64)),
        InputRange("mask", (1, 1, 1, 1), (1, 1, 1, 11), (16, 1, 64, 128)),
        InputRange("past_key_00", (1, 2, 0, 8), (1, 2, 10, 8), (16, 2, 64, 8)),
        InputRange("cross_key_00", (1, 2, 8, 577), (1, 2, 8, 577), (16, 2, 8, 577)),
    )


USES = (
    GraphUse("step", {**GRAPH.axes, "batch": AxisRange(1, 16, 128), "tokens": AxisRange(1, 1, 1),
                      "past": AxisRange(19, 19, 19)}),
    GraphUse("read", {**GRAPH.axes, "batch": AxisRange(1, 16, 128), "tokens": AxisRange(1, 12, 64),
                      "past": AxisRange(0, 0, 1)}),
)  # fmt: skip


def test_every_use_has_a_profile_with_batches_up_to_the_largest():
    graph = msgspec.structs.replace(GRAPH, axes={**GRAPH.axes, "batch": AxisRange(1, 16, 128)}, uses=USES)
    step, read = profiles(graph, 32)
    assert (step.use, read.use) == ("step", "read")
    assert step.inputs[1] == InputRange("mask", (1, 1, 1, 20), (16, 1, 1, 20), (32, 1, 1, 20))
    assert read.inputs[0] == InputRange("token_ids", (1, 1), (16, 12), (32, 64))
    assert read.inputs[2].largest == (32, 2, 1, 8)
    assert [wanted.inputs[0].usual for wanted in profiles(graph, 2)] == [(2, 1), (2, 12)]
    assert profiles(graph, 4096) == profiles(graph)


def test_the_largest_batch_follows_the_gpus_memory():
    graph = msgspec.structs.replace(GRAPH, axes={"batch": AxisRange(1, 16, 128)}, inputs=GRAPH.inputs[:1])
    assert [largest_batch(graph, mb) for mb in (100, 8_000, 24_000, 80_000)] == [1, 8, 64, 128]
    assert settled_options(EngineOptions(), graph, 8_000).max_batch == 8
    assert settled_options(EngineOptions(max_batch=500), graph, 8_000).max_batch == 128
    keyframes = msgspec.structs.replace(graph, axes={"frames": AxisRange(1, 32, 64)})
    assert settled_options(EngineOptions(max_batch=8), keyframes, 8_000).max_batch is None


def test_an_engine_is_tuned_for_the_batch_that_the_pipeline_runs():
    frames = msgspec.structs.replace(GRAPH, axes={"batch": AxisRange(1, 16, 128)}, inputs=GRAPH.inputs[:1])
    captions = msgspec.structs.replace(GRAPH, uses=USES)
    captions = msgspec.structs.replace(captions, axes={**GRAPH.axes, "batch": AxisRange(1, 16, 128)})
    for megabytes in (7_600, 23_600, 143_000):
        machine = PipelineMachine(1, 0, megabytes, caption_bytes(captions))
        sizes = choose_sizes(PipelineOptions(), machine)
        settled = settled_options(EngineOptions(), frames, megabytes)
        assert (settled.usual_batch, settled.max_batch >= sizes.batch) == (sizes.batch, True)
        settled = settled_options(EngineOptions(), captions, megabytes)
        assert settled.usual_batch == min(sizes.captions, settled.max_batch)
        step = profiles(captions, settled.max_batch, settled.usual_batch)[0]
        assert step.inputs[0].usual == (settled.usual_batch, 1)
    one = GraphUse("one", {**GRAPH.axes, "batch": AxisRange(1, 1, 128)})
    single = msgspec.structs.replace(captions, uses=(*USES, one))
    assert profiles(single, 128, 128)[-1].inputs[0].usual == (1, 1)


def test_an_axis_without_a_range_is_an_error_that_names_it():
    graph = msgspec.structs.replace(GRAPH, axes={"batch": AxisRange(1, 1, 16)})
    with pytest.raises(InvariantError, match="token_ids: axis 'tokens' has no range"):
        profiles(graph)


def test_the_profile_that_is_tuned_nearest_to_the_shapes_is_chosen():
    one = (InputRange("frames", (1, 4), (1, 4), (4, 4)), InputRange("past", (0, 2), (0, 2), (8, 2)))
    many = (InputRange("frames", (1, 4), (8, 4), (16, 4)), InputRange("past", (0, 2), (8, 2), (8, 2)))
    for frames, past, chosen in ((1, 0, 0), (4, 8, 1), (16, 0, 1), (17, 0, None)):
        assert nearest_profile((one, many), {"frames": (frames, 4), "past": (past, 2)}) == chosen


FITTING = {"token_ids": (2, 3), "mask": (2, 1, 3, 3), "past_key_00": (2, 2, 0, 8), "cross_key_00": (2, 2, 8, 577)}


def test_shapes_at_the_bounds_are_inside():
    ranges = profiles(GRAPH)[-1].inputs
    assert range_problem("text", ranges, FITTING) is None
    assert range_problem("text", ranges, {wanted.name: wanted.smallest for wanted in ranges}) is None
    assert range_problem("text", ranges, {wanted.name: wanted.largest for wanted in ranges}) is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [("token_ids", (17, 3)), ("token_ids", (2, 0)), ("token_ids", (2,)), ("cross_key_00", (2, 2, 8, 576))],
)
def test_a_shape_outside_the_range_names_the_range(name, shape):
    reason = range_problem("text", profiles(GRAPH)[-1].inputs, {**FITTING, name: shape})
    assert reason.code == "PROFILE_RANGE"
    assert f"graph 'text': input {name} is {list(shape)}, expected [" in reason.evidence
    assert dataclasses.asdict(reason)["fix"]
