"""Writing an ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from ..base.errors import MissingExtra

OPSET, IR_VERSION = 17, 8  # of every graph that is written here: ONNX 1.12, for runtimes of 2022
DType = Literal["float32", "float64"]


class OnnxGraphBuilder:
    """Collects nodes; each method adds one and gives the name of what it makes."""

    def __init__(self, dtype: DType) -> None:
        try:
            import onnx
            from onnx import helper, numpy_helper
        except ImportError as error:
            raise MissingExtra("onnx", extra=("agent", "coordinator,onnx")) from error
        import numpy as np

        self.helper = helper
        self.to_tensor = numpy_helper.from_array
        self.np = np
        self.dtype = np.dtype(dtype)
        self.element = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.integer = onnx.TensorProto.INT64
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def split(self, value: str) -> tuple[str, str]:
        """The two halves of a matrix's columns."""
        first, second = f"Split_{len(self.nodes)}_a", f"Split_{len(self.nodes)}_b"
        self.nodes.append(self.helper.make_node("Split", [value], [first, second], axis=1))
        return first, second

    def cast(self, value: str) -> str:
        return self.op("Cast", value, to=self.element)

    def number(self, value: float) -> str:
        return self.constant(self.np.asarray(value, self.dtype))

    def constant(self, value: Any, *, name: str | None = None) -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(self.to_tensor(self.np.asarray(value), name))
        return name

    def value(self, name: str, shape: list[int | str], *, integer: bool = False) -> Any:
        return self.helper.make_tensor_value_info(name, self.integer if integer else self.element, shape)

    def finish(
        self,
        name: str,
        inputs: list[Any],
        outputs: list[Any],
        *,
        metadata: Mapping[str, str] = MappingProxyType({}),
        strict: bool = False,
    ) -> bytes:
        """The serialised model, the same bytes for the same nodes and metadata.

        ``strict``: every node's operator, types and shapes are checked first; for files that others read.
        """
        graph = self.helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        opset = self.helper.make_opsetid("", OPSET)
        model = self.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="flamest")
        self.helper.set_model_props(model, dict(sorted(metadata.items())))
        if strict:
            from onnx import checker

            checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
