"""A TensorRT that builds and computes: genuine names and classes, stand-ins where the library would work.

Put before the rig's packages (``rig.environment(scripted=True)``), it lets a whole command run in child
processes. Its engines hold a valid header, the SHA-256 of the ONNX bytes, the options and the profiles that were set,
and the graph itself, which ONNX Runtime's CPU provider computes in place of a GPU, on the memory of fake_cuda.py.

With ``FLAMEST_SCRIPT=crash`` building ends its process as a broken runtime would, with ``refuse`` it returns nothing,
with ``hang`` it continues until it is asked to stop (its process id is then in the file FLAMEST_SCRIPT_PID).
``crash_open`` ends the process that deserialises. ``stale``: an engine that returns the last shape's result;
``swapped``: two inputs at each other's address; ``replays``: the same, in CUDA graphs alone. The engine of one layer
that is built first is right, unless the script begins with ``first_``.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys
import time

import numpy as np
import onnx
import tensorrt_bindings as genuine
from tensorrt_bindings import *  # noqa: F403
from tensorrt_bindings import __version__
from tensorrt_fakes import Fakes

_FLOATS = {1: "FLOAT", 10: "HALF", 16: "BF16"}  # of onnx.TensorProto
_DTYPES = {**_FLOATS, 2: "UINT8", 6: "INT32", 7: "INT64"}
_LAYERS = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY"}
_given = os.environ.get("FLAMEST_SCRIPT", "")
_fakes = Fakes()
_seen = {}
sys.path.append(str(pathlib.Path(__file__).parents[3] / "runtime" / "backends" / "tensorrt"))  # fake_engine, fake_cuda


def Builder(logger):  # noqa: N802
    fakes = _fakes
    cache = fakes.make("ITimingCache", **{"serialize.return_value": b"timings"})
    config = fakes.make(
        "IBuilderConfig",
        **{
            "add_optimization_profile.side_effect": _add_profile,
            "create_timing_cache.return_value": cache,
            "set_timing_cache.return_value": True,
            "get_timing_cache.return_value": cache,
        },
    )
    builder = fakes.make(
        "Builder",
        **{
            "create_network.return_value": fakes.make("INetworkDefinition", **{"get_flag.return_value": True}),
            "create_builder_config.return_value": config,
            "create_optimization_profile.side_effect": _make_profile,
        },
    )
    builder.build_serialized_network.side_effect = lambda network, config: _build(logger, config)
    return builder


def _script_for(graph):
    first = _given.startswith("first_")
    return _given.removeprefix("first_") if first == (graph == "one_layer") else ""


def _make_profile():
    profile = _fakes.make("IOptimizationProfile")
    _seen["profile"] = {}
    profile.set_shape.side_effect = lambda name, *sizes: _seen["profile"].update({name: [list(one) for one in sizes]})
    return profile


def _add_profile(profile):
    _seen.setdefault("profiles", []).append(_seen["profile"])
    return len(_seen["profiles"]) - 1


def OnnxParser(network, logger):  # noqa: N802
    parser = _fakes.make("OnnxParser", num_errors=0)
    parser.parse.side_effect = lambda model: _parse(network, model)
    return parser


def _parse(network, model):
    """Inputs, outputs and products of the real ONNX graph, in the type of its weights."""
    graph = onnx.load_from_string(model).graph
    _seen["script"] = _script_for(graph.name)
    _seen["model"], _seen["profiles"] = model, []
    _seen["sha256"] = hashlib.sha256(model).hexdigest()
    for side, values in (("input", graph.input), ("output", graph.output)):
        made = [_tensor(value.type.tensor_type.elem_type, value.name) for value in values]
        network.configure_mock(**{f"num_{side}s": len(made), f"get_{side}.side_effect": made.__getitem__})
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    kind = next((half for half in (10, 16) if half in kinds), 1)
    layers = [_layer(_LAYERS[node.op_type], kind) for node in graph.node if node.op_type in _LAYERS]
    network.configure_mock(**{"num_layers": len(layers), "get_layer.side_effect": layers.__getitem__})
    return True


def _tensor(kind, name):
    tensor = _fakes.make("ITensor", dtype=getattr(genuine.DataType, _DTYPES[kind]))
    tensor.name = name
    return tensor


def _layer(layer, kind):
    made = _fakes.make("ILayer", type=getattr(genuine.LayerType, layer))
    made.get_output.return_value = _tensor(kind, "")
    return made


def _build(logger, config):
    _fakes.check()
    _script = _seen["script"]
    if _script == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if _script == "refuse":
        logger.log(genuine.ILogger.Severity.ERROR, "Could not find any implementation for node {conv}")
        return None
    if _script == "hang":
        pathlib.Path(os.environ["FLAMEST_SCRIPT_PID"]).write_text(str(os.getpid()))
        config.progress_monitor.phase_start("forever", None, 1)
        while config.progress_monitor.step_complete("forever", 0):
            time.sleep(0.01)
        return None
    for phase in ("Building LoadedEngine", "Tactics"):
        config.progress_monitor.phase_start(phase, None, 2)
        config.progress_monitor.step_complete(phase, 0)
        config.progress_monitor.phase_finish(phase)
    options = (config.builder_optimization_level, str(config.hardware_compatibility_level))
    version = bytes([*(int(part) for part in __version__.split(".")), 7][:4])  # 10.3's package states no build
    parts = (f"{_seen['sha256']} {options}".encode(), json.dumps(_seen["profiles"]).encode(), _seen["model"])
    return b"ftrt" + bytes(20) + version + b"\0".join(parts)


def Runtime(logger):  # noqa: N802
    runtime = _fakes.make("Runtime")
    runtime.deserialize_cuda_engine.side_effect = lambda data: _open(bytes(data))
    return runtime


def _open(data):
    """The engine of ``_build``, as a fake that computes."""
    _, profiles, model = data[28:].split(b"\0", 2)
    script = _script_for(onnx.load_from_string(model).graph.name)
    if script == "crash_open":
        os.kill(os.getpid(), signal.SIGSEGV)
    from cuda.bindings import runtime as cuda
    from fake_engine import FakeEngine

    class Engine(FakeEngine):
        def addresses_seen(self, context):
            found = dict(context.addresses)
            shapes = {name: context.shape(name) for name in self.spec.inputs}
            pairs = [(a, b) for a in shapes for b in shapes if a < b and shapes[a] == shapes[b] and all(shapes[a])
                     and self.spec.inputs[a] == self.spec.inputs[b]]  # fmt: skip
            if pairs and (script == "swapped" or (script == "replays" and context.captured)):
                first, second = pairs[-1]
                found[first], found[second] = found[second], found[first]
            return found

    return Engine(genuine, _fakes, cuda, _spec(json.loads(profiles), model, script)).engine


def _spec(profiles, model, script):
    from fake_engine import EngineSpec
    from flamest.runtime.backends.bf16_emulation import emulate_bf16
    from flamest.runtime.backends.onnxruntime_cpu import open_session

    graph = onnx.load_from_string(model).graph
    kinds = [{value.name: _DTYPES[value.type.tensor_type.elem_type] for value in side}
             for side in (graph.input, graph.output)]  # fmt: skip
    bf16 = any(tensor.data_type == 16 for tensor in graph.initializer)
    session = open_session(emulate_bf16(model) if bf16 else model, threads=1)
    last, known = {}, {}

    def compute(inputs):
        feeds = {name: _floats(array) if kinds[0][name] == "BF16" else array for name, array in inputs.items()}
        found = session.run(feeds)
        found = {name: _bits(array) if kinds[1][name] == "BF16" else array for name, array in found.items()}
        if script != "stale":
            return found
        shown = {name: _fitted(last.get(name, array), array) for name, array in found.items()}
        last.update(found)
        return shown

    def shapes(of_inputs):
        key = tuple(sorted((name, tuple(shape)) for name, shape in of_inputs.items()))
        if key not in known:
            types = {"FLOAT": "float32", "HALF": "float16", "BF16": "float32", "UINT8": "uint8"}
            zeros = {name: np.zeros(shape, types.get(kinds[0][name], "int64")) for name, shape in of_inputs.items()}
            known[key] = {name: array.shape for name, array in session.run(zeros).items()}
        return known[key]

    every = [{name: [tuple(one) for one in sizes] for name, sizes in profile.items()} for profile in profiles]
    return EngineSpec(kinds[0], kinds[1], every, shapes, compute)


def _fitted(old, new):
    """The last result where it had another shape: what is missing is zero."""
    if old.shape == new.shape:
        return new
    made = np.zeros_like(new)
    common = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, new.shape))  # noqa: B905
    made[common] = old[common]
    return made


def _floats(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _bits(floats):
    return (np.ascontiguousarray(floats, np.float32).view(np.uint32) >> 16).astype(np.uint16)
