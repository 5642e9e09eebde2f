"""What a TensorRT plan is, for people and for the manifest: how it was built, and where it may run."""

from __future__ import annotations

from typing import Literal

import msgspec

HardwareCompat = Literal["none", "ampere+", "same-cc"]
OPT_LEVELS = range(6)  # of TensorRT's builder: 0 builds fastest, 5 searches longest


class PlanOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a plan is built. Precision is not among them: it stands in the ONNX graph."""

    opt_level: int = 3
    hardware_compat: HardwareCompat = "none"
    version_compatible: bool = False
    strip_weights: bool = False  # the weights are put in on the node, from the ONNX graph beside the plan
    tf32: bool = False  # float32 products may round their inputs to 10 bits of mantissa (Ampere and later)
    workspace_mb: int | None = None  # MiB that a kernel may use beside its tensors; None: all of the GPU's

    def flags(self) -> tuple[str, ...]:
        """The options that differ from the default, as ``flamest-export`` takes them."""
        words: list[str] = []
        if self.opt_level != PlanOptions().opt_level:
            words += ["--opt-level", str(self.opt_level)]
        if self.hardware_compat != "none":
            words += ["--hardware-compat", self.hardware_compat]
        words += ["--version-compatible"] if self.version_compatible else []
        words += ["--strip-weights"] if self.strip_weights else []
        words += ["--tf32"] if self.tf32 else []
        words += ["--workspace-mb", str(self.workspace_mb)] if self.workspace_mb is not None else []
        return tuple(words)


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One plan file of a graph: native code for one GPU (or family) and one TensorRT (or major version)."""

    file: str
    onnx_sha256: str  # of the graph that it was built from
    tensorrt: str  # version, from the plan's own header: "10.16.1.11"
    cuda: str  # newest CUDA that the driver supports: "12.8"
    driver: str  # "570.86.15"; "unknown" where the driver does not say
    gpu: str  # "NVIDIA H100 80GB HBM3"
    compute_capability: str  # "9.0"
    options: PlanOptions
    build_seconds: float
