"""Half precision at the level of PyTorch: matmuls and convolutions in fp16 or bf16, delicate operations in fp32.

Cast there and not in the finished file: tools that convert ONNX files to float16 were seen to write
graphs that strict shape inference refuses. Layer norms, softmaxes and means are computed in fp32 and
rounded once; the normalisation of frames comes before all this and is fp32 too. Masks, logits, hidden states and
embeddings are fp32 at a graph's ends. Keys and values are not: they have the text graph's precision from where they
are made to where they are read, and take half the memory on the way.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ...runtime.bundle.graph_records import Precision, Tensor
from ..graphs.spec import GraphSpec
from ..networks.per_frame import fold_norms

if TYPE_CHECKING:
    import torch
    from torch import nn

HALVES: Mapping[Precision, str] = {"fp16": "float16", "bf16": "bfloat16"}  # their tensors; all others have float32
_CACHES = ("past_", "present_", "cross_")


def half_spec(spec: GraphSpec, precision: Precision, text: Precision, *, softmax_in_fp32: bool = True) -> GraphSpec:
    """``spec`` with a copy of its module that computes in ``precision``, and keys and values in that of graph ``text``.

    ``softmax_in_fp32``: False only to measure what the casts cost (export/gpu_check/attention_casts.py).

    fp32 and int8 leave the arithmetic as it is: int8 is written into the finished file.
    """
    inputs, outputs = (tuple(_typed(tensor, text) for tensor in side) for side in (spec.inputs, spec.outputs))
    if precision not in HALVES and (inputs, outputs) == (spec.inputs, spec.outputs):
        return spec
    module = half_module(spec.module, precision, [tensor.dtype for tensor in outputs], softmax_in_fp32=softmax_in_fp32)
    kept = precision if precision in HALVES else spec.precision
    return dataclasses.replace(spec, module=module, inputs=inputs, outputs=outputs, precision=kept)


def _typed(tensor: Tensor, text: Precision) -> Tensor:
    is_cache = text in HALVES and tensor.name.startswith(_CACHES)
    return msgspec.structs.replace(tensor, dtype=HALVES[text]) if is_cache else tensor


def half_module(
    module: nn.Module, precision: Precision, outputs: Sequence[str], *, softmax_in_fp32: bool = True
) -> nn.Module:
    """A copy of ``module`` (a graph's wrapper) that multiplies in ``precision``.

    ``outputs``: the type of each output. Buffers that the wrapper itself holds (the caption vectors of CLIP) stay fp32.
    """
    import torch
    from torch import nn

    dtype = getattr(torch, HALVES.get(precision, "float32"))
    results = [getattr(torch, name) for name in outputs]
    inner = fold_norms(copy.deepcopy(module)) if precision in HALVES else module
    if precision in HALVES:
        _cast(inner, dtype)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: torch.Tensor) -> Any:
            with _delicate_in_fp32(dtype, softmax_in_fp32):
                made = self.inner(*(value.to(dtype) if value.is_floating_point() else value for value in inputs))
            if not isinstance(made, tuple):
                return made.to(results[0])
            return tuple(value.to(result) for value, result in zip(made, results, strict=True))

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


def _delicate_in_fp32(dtype: torch.dtype, with_softmax: bool) -> Any:
    """A mode in which softmax, layer norm and mean compute in fp32 and return the type of their input.

    In bf16 also max pooling and padding, which round nothing: ONNX Runtime's CUDA provider has no such kernels
    (https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md).
    """
    import torch
    from torch.overrides import TorchFunctionMode

    functional = torch.nn.functional
    delicate = {functional.layer_norm, torch.mean, torch.Tensor.mean}
    if with_softmax:
        delicate |= {functional.softmax, torch.softmax, torch.Tensor.softmax}
    if dtype == torch.bfloat16:
        delicate |= {functional.pad, functional.max_pool2d, functional.max_pool3d, torch.max_pool2d, torch.max_pool3d}

    class DelicateInFp32(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func not in delicate or not args[0].is_floating_point():
                return func(*args, **(kwargs or {}))
            return func(args[0].float(), *args[1:], **(kwargs or {})).to(args[0].dtype)

    return DelicateInFp32()
