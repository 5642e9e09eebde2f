"""Export of a module to one ONNX file: no external data, axes by name, checked.

Written with PyTorch's graph-capturing exporter (``torch.onnx.export(dynamo=True)``): about a third
of the nodes that the older tracing exporter leaves, and no shape arithmetic over fixed sizes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...base.errors import InvariantError, MissingExtra
from ...runtime.bundle.graph_records import Graph, Tensor
from ..precision.dtypes import read_dtype_histogram
from .spec import GraphSpec

if TYPE_CHECKING:
    import torch

OPSET = 18
OPSET_BF16 = 22  # the first in which convolutions and pooling may be bfloat16

# Sizes while tracing: all different and above one, or the tracer would take two axes for one, or one for fixed.
_TRACED = {"batch": 2, "tokens": 3, "past": 5, "frames": 4, "past + tokens": 8}


def write_graph(spec: GraphSpec, folder: Path) -> Graph:
    """Export ``spec`` to ``folder/NAME.onnx`` and describe the file.

    Raises MissingExtra, InvariantError when the exported graph differs from the spec.
    """
    try:
        import onnx  # noqa: F401
        import torch
        import torch.onnx
    except ImportError as error:
        raise MissingExtra(error.name or "torch", extra="export") from error

    opset = OPSET_BF16 if spec.precision == "bf16" else OPSET
    sizes = {**_TRACED, **{word: axis.usual for word, axis in spec.axes.items() if axis.smallest == axis.largest}}
    example = tuple(_example(tensor, sizes) for tensor in spec.inputs)
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter still calls parts of PyTorch that PyTorch deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            spec.module,
            example,
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(spec),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise InvariantError(f"graph '{spec.name}': the exporter returned nothing")
    model = program.model_proto
    _strip(model)
    order_gelus(model)
    _name_axes(spec.name, "input", model.graph.input, spec.inputs)
    _name_axes(spec.name, "output", model.graph.output, spec.outputs)
    path = folder / f"{spec.name}.onnx"
    check_and_save(model, path)
    return Graph(
        file=path.name,
        opset=opset,
        inputs=spec.inputs,
        outputs=spec.outputs,
        axes=dict(spec.axes),
        precision=spec.precision,
        dtype_histogram=read_dtype_histogram(path),
    )


def check_and_save(model: Any, path: Path) -> None:
    """One file without external data, checked with strict shape inference."""
    import onnx

    onnx.save_model(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def _example(tensor: Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
    import torch

    shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def _dynamic_shapes(spec: GraphSpec) -> tuple[Any, ...]:
    """Per argument of ``forward`` its dynamic axes; all after ``*args`` is one argument, a tuple."""
    import inspect

    import torch

    dynamic = torch.export.Dim.DYNAMIC
    shapes = [{i: dynamic for i, size in enumerate(t.shape) if isinstance(size, str)} for t in spec.inputs]
    parameters = list(inspect.signature(spec.module.forward).parameters.values())
    if parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:
        named = len(parameters) - 1
        return (*shapes[:named], tuple(shapes[named:]))
    return tuple(shapes)


def _strip(model: Any) -> None:
    """Drop the exporter's debugging notes: source lines and paths of the building machine."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def _name_axes(graph: str, side: str, values: Any, promised: tuple[Tensor, ...]) -> None:
    if [value.name for value in values] != [tensor.name for tensor in promised]:
        raise InvariantError(f"graph '{graph}': {side}s are {[value.name for value in values]}, expected other names")
    for value, tensor in zip(values, promised, strict=True):
        dims = value.type.tensor_type.shape.dim
        found = tuple(dim.dim_param or dim.dim_value for dim in dims)
        fits = len(found) == len(tensor.shape) and all(
            isinstance(have, str) if isinstance(want, str) else have == want
            for have, want in zip(found, tensor.shape, strict=True)
        )
        if not fits:
            raise InvariantError(f"graph '{graph}': {side} {tensor.name} has shape {found}, expected {tensor.shape}")
        for dim, want in zip(dims, tensor.shape, strict=True):
            if isinstance(want, str):
                dim.dim_param = want


def order_gelus(model: Any) -> int:
    """Reorder each GELU of ``model`` (an ``onnx.ModelProto``) into the form that runtimes fuse; return how many.

    PyTorch's exporter writes x · (0.5 · (1 + erf(x / √2))). ONNX Runtime (its GeluFusion) and others fuse
    (x · (1 + erf(x / √2))) · 0.5 to one operator. Halving is exact, so the numbers are the same.
    """
    from onnx import numpy_helper

    graph, changed = model.graph, 0
    makers = {node.output[0]: node for node in graph.node}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    halves = {
        tensor.name
        for tensor in graph.initializer
        if not tensor.dims and np.asarray(numpy_helper.to_array(tensor), np.float64) == 0.5
    }
    for halved in list(graph.node):
        operands = set(halved.input)
        if halved.op_type != "Mul" or len(operands & halves) != 1 or len(operands) != 2:
            continue
        (half,) = operands & halves
        (summed,) = operands - halves
        last = readers.get(halved.output[0], [])
        if not _is_one_plus_erf(makers, summed) or [node.op_type for node in last] != ["Mul"]:
            continue
        x = next(name for name in last[0].input if name != halved.output[0])
        halved.input[:], last[0].input[:] = [x, summed], [halved.output[0], half]
        changed += 1
    return changed


def _is_one_plus_erf(makers: dict[str, Any], name: str) -> bool:
    """True where ``name`` is the sum of an Erf's result and another value."""
    node = makers.get(name)
    return (
        node is not None
        and node.op_type == "Add"
        and any(makers[operand].op_type == "Erf" for operand in node.input if operand in makers)
    )
