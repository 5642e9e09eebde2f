"""Export of a module to one ONNX file: no external data, axes by name, checked.

Written with PyTorch's graph-capturing exporter (``torch.onnx.export(dynamo=True)``): about a third
of the nodes that the older tracing exporter leaves, and no shape arithmetic over fixed sizes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, InvariantError, MissingExtra
from ...runtime.bundle.graph_check import check_graph
from ...runtime.bundle.graph_records import Graph, Tensor
from ..precision.dtypes import read_dtype_histogram
from .fusible import cast_bytes_first, order_gelus, scale_queries
from .spec import GraphSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

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

    module = spec.whole_module()
    opset = OPSET_BF16 if spec.precision == "bf16" else OPSET
    sizes = {**_TRACED, **{word: axis.usual for word, axis in spec.axes.items() if axis.smallest == axis.largest}}
    example = tuple(_example(tensor, sizes) for tensor in spec.inputs)
    with torch.no_grad(), warnings.catch_warnings(), _as_encoder_errors(spec):
        # The exporter still calls parts of PyTorch that PyTorch deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(module, spec.inputs),
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
    cast_bytes_first(model)
    order_gelus(model)
    scale_queries(model)
    with _as_encoder_errors(spec):
        _name_axes(spec.name, "input", model.graph.input, spec.inputs)
        _name_axes(spec.name, "output", model.graph.output, spec.outputs)
    path = folder / f"{spec.name}.onnx"
    check_and_save(model, path)
    if spec.own:
        check_graph(path, path.name)
    return Graph(
        file=path.name,
        opset=opset,
        inputs=spec.inputs,
        outputs=spec.outputs,
        axes=dict(spec.axes),
        uses=spec.uses,
        precision=spec.precision,
        dtype_histogram=read_dtype_histogram(path),
    )


@contextlib.contextmanager
def _as_encoder_errors(spec: GraphSpec) -> Iterator[None]:
    """Whatever the tracing of an encoder of the exporter's own raises, as DataError ``encoder_not_exported``."""
    try:
        yield
    except Exception as error:
        if not spec.own:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(
            f"the encoder's module cannot be exported as a graph: {type(error).__name__}: "
            f"{' '.join(lines)[:600] or 'no reason given'}",
            fix="its forward may have no branch on values, and no number of clips built in: write shapes with x.shape "
            "and -1 (docs/guides/own-encoder.md)",
            code="encoder_not_exported",
        ) from error


def check_and_save(model: Any, path: Path) -> None:
    """One file without external data, checked with strict shape inference."""
    import onnx

    onnx.save_model(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def _example(tensor: Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
    import torch

    shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def _dynamic_shapes(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Per argument of ``forward`` its dynamic axes; all after ``*args`` is one argument, a tuple."""
    import inspect

    import torch

    dynamic = torch.export.Dim.DYNAMIC
    shapes = [{i: dynamic for i, size in enumerate(t.shape) if isinstance(size, str)} for t in inputs]
    parameters = list(inspect.signature(module.forward).parameters.values())
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
