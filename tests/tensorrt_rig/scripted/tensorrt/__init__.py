"""A TensorRT that builds: genuine names and classes, stand-ins where the library would compute.

Put before the rig's packages (``rig.environment(scripted=True)``), it lets a whole command run in child
processes. Its engines hold a valid header, the SHA-256 of the ONNX bytes and the options that were set. With
``FLAMEST_SCRIPT=crash`` building ends its process as a broken runtime would, with ``refuse`` it returns nothing,
with ``hang`` it continues until it is asked to stop (its process id is then in the file FLAMEST_SCRIPT_PID).
"""

import hashlib
import os
import pathlib
import signal
import time

import tensorrt_bindings as genuine
from tensorrt_bindings import *  # noqa: F403
from tensorrt_bindings import __version__
from tensorrt_fakes import Fakes

_FLOATS = {1: "FLOAT", 10: "HALF", 16: "BF16"}  # of onnx.TensorProto
_DTYPES = {**_FLOATS, 7: "INT64"}
_LAYERS = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY"}
_script = os.environ.get("FLAMEST_SCRIPT", "")
_fakes = Fakes()
_seen = {}


def Builder(logger):  # noqa: N802
    fakes = _fakes
    cache = fakes.make("ITimingCache", **{"serialize.return_value": b"timings"})
    config = fakes.make(
        "IBuilderConfig",
        **{
            "add_optimization_profile.return_value": 0,
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
            "create_optimization_profile.return_value": fakes.make("IOptimizationProfile"),
        },
    )
    builder.build_serialized_network.side_effect = lambda network, config: _build(logger, config)
    return builder


def OnnxParser(network, logger):  # noqa: N802
    parser = _fakes.make("OnnxParser", num_errors=0)
    parser.parse.side_effect = lambda model: _parse(network, model)
    return parser


def _parse(network, model):
    """Inputs, outputs and products of the real ONNX graph, in the type of its weights."""
    import onnx

    graph = onnx.load_from_string(model).graph
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
    version = bytes([*(int(part) for part in __version__.split(".")[:3]), 7])
    return b"ftrt" + bytes(20) + version + f"{_seen['sha256']} {options}".encode()
