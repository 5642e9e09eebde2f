"""Half precision at the level of PyTorch: matmuls and convolutions in fp16 or bf16, delicate operations in fp32.

Cast there and not in the finished file: tools that convert ONNX files to float16 were seen to write
graphs that strict shape inference refuses. Layer norms, softmaxes and means are computed in fp32 and
rounded once; a graph's inputs and outputs stay fp32, so that caches and masks look the same to the
runtime whatever the precision.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from ..networks.per_frame import fold_norms

if TYPE_CHECKING:
    import torch
    from torch import nn

HalfPrecision = Literal["fp16", "bf16"]


def half_module(module: nn.Module, precision: HalfPrecision) -> nn.Module:
    """A copy of ``module`` (a graph's wrapper) that multiplies in ``precision``, with fp32 inputs and outputs.

    Buffers that the wrapper itself holds (the caption vectors of CLIP) stay fp32.
    """
    import torch
    from torch import nn

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    inner = fold_norms(copy.deepcopy(module))
    _cast(inner, dtype)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: torch.Tensor) -> Any:
            with _delicate_in_fp32():
                outputs = self.inner(*(value.to(dtype) if value.is_floating_point() else value for value in inputs))
            if isinstance(outputs, tuple):
                return tuple(value.float() if value.is_floating_point() else value for value in outputs)
            return outputs.float()

    return Half().eval()


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    from torch import nn

    own = {id(buffer) for buffer in module.buffers(recurse=False)}
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            continue
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.is_floating_point() and id(tensor) not in own:
                tensor.data = tensor.data.to(dtype)


def _delicate_in_fp32() -> Any:
    """A mode in which softmax, layer norm and mean compute in fp32 and return the dtype of their input."""
    import torch
    from torch.overrides import TorchFunctionMode

    functional = torch.nn.functional
    delicate = {
        functional.softmax, torch.softmax, torch.Tensor.softmax, functional.layer_norm, torch.mean, torch.Tensor.mean
    }  # fmt: skip

    class DelicateInFp32(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func not in delicate or not args[0].is_floating_point():
                return func(*args, **(kwargs or {}))
            return func(args[0].float(), *args[1:], **(kwargs or {})).to(args[0].dtype)

    return DelicateInFp32()
