"""The devices of a request: none for the extraction's own process, or workers with their shares of the machine."""

from __future__ import annotations

from dataclasses import replace

from ...base.process import usable_cores
from ...runtime.backends.machine import MachineFacts
from ...runtime.backends.opening import machine_facts
from ...runtime.devices import Device, parse_devices
from ...runtime.pipeline_options import PipelineOptions
from ...runtime.worker_messages import WorkerSetup
from .report import ExtractRequest

CPU = (Device(),)


def worker_setups(request: ExtractRequest) -> list[tuple[Device, WorkerSetup]]:
    """A worker for each device that the request names; empty where its own process does the work: no device is named,
    or the CPU once.

    Raises UsageError for what is no device, SettingsError ``no_device`` for one that is not there.
    """
    if not request.device:
        return []
    facts = machine_facts()
    devices = parse_devices(request.device, [gpu.name for gpu in facts.gpus], problem=facts.driver_problem)
    if devices == CPU:
        return []
    threads = max(1, (request.threads or usable_cores()) // len(devices))
    return [
        (
            device,
            WorkerSetup(
                bundle=request.bundle,
                needs_gpu=device.gpu is not None,
                threads=threads,
                pipeline=share_of(request.pipeline, len(devices), number),
                limits=request.limits,
                trusted=request.trusted,
                backend_options=request.backend_options,
            ),
        )
        for number, device in enumerate(devices)
    ]


def share_of(pipeline: PipelineOptions, workers: int, number: int = 0) -> PipelineOptions:
    """The options of worker ``number``, from 0: its part of the memory and of the readers; the first take the rest."""
    readers = pipeline.readers
    if readers is not None:
        readers = max(1, readers // workers + (number < readers % workers))
    return replace(pipeline, readers=readers, workers=workers)


def chosen_facts(request: ExtractRequest) -> MachineFacts | None:
    """The facts that the networks are opened with where the request names CPUs alone; None, this machine's, else."""
    if set(request.device.replace(",", " ").split()) == {str(CPU[0])}:
        return without_gpu(machine_facts())
    return None


def without_gpu(facts: MachineFacts) -> MachineFacts:
    """The facts of a machine whose GPUs are not to be used."""
    return replace(facts, gpu=None, gpus=(), driver_problem="--device cpu: no GPU is to be used")
