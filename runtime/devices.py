"""The devices of an extraction: ``--device``, and ``device`` under [work] in agent.toml.

Nothing, for the first GPU where there is one, else the CPU, in this process. ``cuda:0``, ``cuda:1`` and so on, with
commas between them, or ``all``: a worker process for each of these GPUs. ``cpu``: no GPU; ``cpu,cpu``: two processes
that share the cores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..base.environment import CUDA_VISIBLE_DEVICES
from ..base.errors import SettingsError, UsageError

ALL = "all"
MOST_DEVICES = 64
_CUDA = re.compile(r"cuda:(\d{1,3})")


@dataclass(frozen=True)
class Device:
    """``gpu``: its number as the driver counts the GPUs that this process sees; None for the CPU."""

    gpu: int | None = None

    def __str__(self) -> str:
        return "cpu" if self.gpu is None else f"cuda:{self.gpu}"

    def environment(self) -> dict[str, str]:
        """The variable that makes a process see this GPU alone, as its first one, or none.

        Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/ (environment variables).
        """
        if self.gpu is None:
            return {CUDA_VISIBLE_DEVICES.name: ""}
        seen = [word.strip() for word in CUDA_VISIBLE_DEVICES.value().split(",") if word.strip()]
        return {CUDA_VISIBLE_DEVICES.name: seen[self.gpu] if self.gpu < len(seen) else str(self.gpu)}


def check_devices(words: str) -> None:
    """Raise UsageError for what ``parse_devices`` would not take, on any machine."""
    if words.strip() != ALL:
        _parse(words)


def parse_devices(words: str, gpus: Sequence[str], *, problem: str = "") -> tuple[Device, ...]:
    """The devices that ``words`` name; ``gpus``: the names of this machine's GPUs, ``problem``: why there is none.

    Raises UsageError for other words, SettingsError ``no_device`` for a GPU that is not there.
    """
    if words.strip() == ALL:
        devices = tuple(Device(number) for number in range(len(gpus)))
        if not devices:
            raise _missing_error(ALL, gpus, problem)
        return devices
    devices = _parse(words)
    for device in devices:
        if device.gpu is not None and device.gpu >= len(gpus):
            raise _missing_error(str(device), gpus, problem)
    return devices


def _parse(words: str) -> tuple[Device, ...]:
    devices = []
    for word in (part.strip() for part in words.split(",")):
        found = _CUDA.fullmatch(word)
        if word != "cpu" and found is None:
            said = (
                f"'{word}' is no device" if word else "a device is missing beside a comma" if "," in words else "empty"
            )
            raise UsageError(
                f"--device {words}: {said}, expected cuda:N, cpu or all",
                fix="--device cuda:0, --device cuda:0,cuda:1, --device all or --device cpu; flamest-agent doctor lists "
                "the GPUs",
            )
        devices.append(Device(int(found[1]) if found else None))
    gpus = [device for device in devices if device.gpu is not None]
    if len(set(gpus)) != len(gpus):
        once = dict.fromkeys(device for device in devices if device.gpu is not None)
        kept = [str(device) for device in (*once, *(device for device in devices if device.gpu is None))]
        raise UsageError(
            f"--device {words}: expected each GPU once",
            fix=f"--device {','.join(kept)}; a larger --batch gives a GPU more to do at once",
        )
    if len(devices) > MOST_DEVICES:
        raise UsageError(f"--device {words}: expected at most {MOST_DEVICES} devices", fix="--device all, or fewer")
    return tuple(devices)


def _missing_error(word: str, gpus: Sequence[str], problem: str) -> SettingsError:
    if not gpus:
        return SettingsError(
            f"--device {word}: no GPU can be used here: {problem or 'none was found'}",
            fix="leave out --device to compute on the CPU; flamest-agent doctor says what a GPU lacks",
            code="no_device",
        )
    there = ", ".join(f"cuda:{number} ({name})" for number, name in enumerate(gpus))
    return SettingsError(
        f"--device {word}: there is no such GPU here; found: {there}",
        fix="leave out --device, or name one of those; flamest-agent doctor says what a GPU lacks",
        code="no_device",
    )
