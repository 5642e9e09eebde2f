"""A TensorRT plan's version, read from its first 28 bytes without TensorRT, and what that version may run on.

TensorRT has no question "would you take this plan?": it is asked by deserialising, and a plan is native
code. The header is plain bytes (NVIDIA's trtexec reads it in ``printPlanVersion``,
https://github.com/NVIDIA/TensorRT/blob/main/samples/common/sampleEngines.cpp): bytes 0 to 3 ``ftrt``, a
serialisation version 0 as four bytes, and in bytes 24 to 27 major, minor, patch and build of TensorRT.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ...base.errors import StorageError
from .refusals import Code, refuse

TAG = b"ftrt"
HEADER_BYTES = 28


class Version(NamedTuple):
    """``build`` is None where it is not known: a package may call itself 10.3.0 and its library be 10.3.0.26."""

    major: int
    minor: int
    patch: int
    build: int | None

    def __str__(self) -> str:
        return ".".join(str(part) for part in self if part is not None)

    @classmethod
    def parse(cls, text: str) -> Version:
        """From "10.16.1.11", "10.3.0", "11.4.0.106.post1"; raises ValueError for anything else."""
        parts = text.strip().split(".")
        if len(parts) < 3:
            raise ValueError(f"{text!r} is no version of TensorRT, expected MAJOR.MINOR.PATCH or more")
        major, minor, patch = (int(part) for part in parts[:3])
        return cls(major, minor, patch, int(parts[3]) if len(parts) > 3 and parts[3].isdigit() else None)


def plan_version(plan: Path | bytes) -> Version:
    """The version of TensorRT that built ``plan``; nothing of it is executed.

    Raises the error of PLAN_HEADER when the file does not begin as a plan does, StorageError.
    """
    if isinstance(plan, bytes):
        name, head = "the plan", plan[:HEADER_BYTES]
    else:
        name = str(plan)
        try:
            with plan.open("rb") as file:
                head = file.read(HEADER_BYTES)
        except OSError as error:
            raise StorageError(f"cannot read {plan}: {error.strerror}") from error
    if len(head) < HEADER_BYTES:
        raise refuse(Code.PLAN_HEADER, f"{name} has {len(head)} bytes, expected at least {HEADER_BYTES}").error()
    if head[:4] != TAG:
        raise refuse(Code.PLAN_HEADER, f"{name} begins with {head[:4]!r}, expected {TAG!r}").error()
    if (serialisation := int.from_bytes(head[4:8], "little")) != 0:
        said = f"{name} has serialisation version {serialisation}, this version of flamest knows 0 only"
        raise refuse(Code.PLAN_HEADER, said).error()
    return Version(*head[24:28])


def version_problem(built: Version, here: Version, *, version_compatible: bool) -> str:
    """Why a plan of TensorRT ``built`` cannot run on TensorRT ``here``; empty when it can.

    Without ``version_compatible`` only the same version may run it. With it the same version or a newer one
    of the same major, and 11 runs plans of 10
    (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html).
    """
    if _known(built, here):
        return ""
    if not version_compatible:
        return f"built by TensorRT {built}, here is {here}; it was not built with --version-compatible"
    if built.major == here.major:
        return "" if built <= here else f"built by TensorRT {built}, here is the older {here}"
    if (built.major, here.major) == (10, 11):
        return ""
    return f"built by TensorRT {built}, here is {here}: another major version"


def _known(built: Version, here: Version) -> bool:
    """Equal in all that is known of both."""
    return built[:3] == here[:3] and (None in (built.build, here.build) or built.build == here.build)
