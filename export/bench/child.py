"""The child process in which ``bench`` measures one backend: its memory is its own, and a crash ends it alone.

The parent (process.py) sends a BenchJob, then questions. The process ends with its connection.
"""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...base.channel import Channel, Failed, Message
from ...base.errors import FlamestError
from ...base.files import sha256_file
from ...base.process import peak_resident_kb, trim_memory
from ...runtime.backends.opening import GraphOpener, OpeningOptions
from ...runtime.backends.options import BackendOptions
from ...runtime.backends.session import Session
from ...runtime.bundle.opening import Bundle, open_bundle
from ...runtime.bundle.signature import TrustedKeys, read_trusted_keys
from ...runtime.clip_records import Clip
from ...runtime.extractor import Extractor, open_extractor
from .inputs import smallest_output, usual_feeds, usual_sizes

KEPT = ("past_", "cross_")  # inputs that are outputs of an earlier run
ON_GPU = ("tensorrt", "onnxruntime-cuda")


class BenchJob(Message, frozen=True):
    """A bundle, and the one backend that it must run on."""

    bundle: str
    backend: str  # of runtime/backends/options.py, and no other in its place
    bf16: bool = False  # an fp32 bundle, computed in bf16
    threads: int | None = None
    trusted: tuple[str, ...] = ()  # keys as text


def bench_job(name: str, bundle: Path, threads: int | None, trusted: TrustedKeys) -> BenchJob:
    """The job of backend ``name``: BACKEND, or BACKEND:bf16 for an fp32 bundle that computes in bf16."""
    backend, _, computed = name.partition(":")
    return BenchJob(str(bundle), backend, computed == "bf16", threads, tuple(key.text for key in trusted))


class Question(Message, frozen=True):
    """A method of ``BenchWorker`` and its arguments."""

    method: str
    arguments: tuple[Any, ...] = ()


class Answer(Message, frozen=True):
    result: Any


class BenchWorker:
    """Answers one question at a time; either a graph or the extractor is open, never both."""

    def __init__(self, job: BenchJob) -> None:
        backend_options = BackendOptions(job.backend, require=True, bf16=job.bf16)
        self._backend = job.backend
        self._on_gpu = job.backend in ON_GPU
        self._opening = OpeningOptions(backend_options, threads=job.threads)
        self._trusted = read_trusted_keys(job.trusted, where="bench")
        self._bundle: Bundle = open_bundle(Path(job.bundle), self._trusted)
        self._graph = ""
        self._session: Session | None = None
        self._feeds: dict[str, Any] = {}
        self._waited = ""  # output that is fetched after a run
        self._extractor: Extractor | None = None
        self._base_mb = 0.0
        self._base_gpu_mb = 0.0

    def open_graph(self, name: str, batch: int) -> dict[str, Any]:
        """Open one graph for ``batch`` clips, run it once (the first run allocates); outputs are kept to compare."""
        self._forget()
        graph, sizes = self._bundle.manifest.graphs[name], self._sizes(name, batch)
        opener = GraphOpener(self._bundle, self._opening)
        self._session = opener.open(name)
        if "batch" in sizes and self._session.largest_batch is not None:
            sizes["batch"] = min(sizes["batch"], self._session.largest_batch)
        feeds = usual_feeds(graph, sizes, self._session)
        # As in an extraction: what one run leaves for the next is where the session computes.
        kept = {word: self._session.value(feed) for word, feed in feeds.items() if word.startswith(KEPT)}
        self._feeds = feeds | kept
        self._waited = smallest_output(graph, sizes)
        placement = opener.placements[name]
        self.run_graph()
        return {"where": placement.where, "precision": placement.precision, "sizes": sizes}

    def run_graph(self) -> float:
        """Milliseconds of one run; its results stay where they are computed, but the smallest, which is fetched."""
        assert self._session is not None
        started = time.perf_counter()
        self._session.run_values(self._feeds)[self._waited].numpy()
        return 1000 * (time.perf_counter() - started)

    def close_graph(self, outputs: str) -> dict[str, float | None]:
        """Write the outputs to the file ``outputs`` (.npz); peak memory above the process's own."""
        assert self._session is not None
        memory = self._memory()
        arrays: Any = self._session.run(self._feeds)
        np.savez(outputs, **arrays)
        self._forget()
        return memory

    def _sizes(self, name: str, batch: int) -> dict[str, int]:
        manifest = self._bundle.manifest
        return usual_sizes(manifest.graphs[name], batch, frames=manifest.keyframes.candidates)

    def open_extractor(self) -> dict[str, Any]:
        """Open the whole pipeline; where its graphs run, its batch, its number of readers."""
        self._forget()
        self._extractor = open_extractor(self._bundle.path, opening=self._opening, trusted=self._trusted)
        where = {name: placement.where for name, placement in self._extractor.placements.items()}
        sizes = self._extractor.sizes
        return {"where": where, "batch": sizes.batch, "readers": sizes.readers}

    def run_clip(self, path: str) -> dict[str, Any]:
        """One clip through everything; its vectors as lists, its caption as token ids."""
        assert self._extractor is not None
        clip = Clip(Path(path), sha256_file(Path(path)))
        started = time.perf_counter()
        features = self._extractor.extract(clip)
        return {
            "ms": 1000 * (time.perf_counter() - started),
            "stages_ms": features.stages_ms,
            "caption": features.caption.text,
            "token_ids": list(features.caption.token_ids),
            "vlm": features.vlm.tolist(),
            "cnn": features.cnn.tolist(),
            "keyframe_times_s": list(features.keyframe_times_s),
            "precision": features.precision,
        }

    def run_clips(self, paths: list[str]) -> float:
        """Seconds of all clips through the pipeline, which reads ahead and batches them."""
        assert self._extractor is not None
        clips = [Clip(Path(path), sha256_file(Path(path))) for path in paths]
        started = time.perf_counter()
        for done in self._extractor.extract_all(clips):
            if done.error is not None:
                raise done.error
        return time.perf_counter() - started

    def profile_graph(self, name: str, batch: int, runs: int, out: str, detailed: bool) -> dict[str, Any]:
        """Layers of one graph from the profiler of its runtime, and the time of a run without it."""
        from ..profiling.layers import measure_layers
        from ..profiling.records import LayerQuestion, by_layer, by_operator

        opened = self.open_graph(name, batch)
        taken = [self.run_graph() for _ in range(runs)]
        memory = self._memory()
        self._forget()
        asked = LayerQuestion(
            self._bundle, name, self._backend, self._opening, opened["sizes"], runs, Path(out), detailed
        )
        found = measure_layers(asked)
        self._forget()
        ms = statistics.median(taken)
        return {
            **opened,
            "ms": ms,
            "runs": runs,
            "gflop": found.gflop,
            "gflops": found.gflop / ms * 1e3 if found.gflop else None,
            "memory_mb": {"peak": memory["peak_mb"], "gpu": memory["gpu_mb"], **found.memory},
            "profiler": found.profiler,
            "note": found.note,
            "operators": by_operator(found.layers),
            "layers": by_layer(found.layers),
            "files": list(found.files),
            "trtexec": found.trtexec,
        }

    def measure_peak(self, precision: str) -> float | None:
        """10^9 operations a second of large matmuls; None where they cannot be measured."""
        from ..profiling.layers import measure_peak

        self._forget()
        return measure_peak(self._backend, precision, self._opening.threads)

    def close_extractor(self) -> dict[str, float | None]:
        assert self._extractor is not None
        memory = {**self._memory(), "decoder_peak_mb": self._extractor.decoder_peak_mb}
        self._forget()
        return memory

    def _forget(self) -> None:
        """Close what is open; memory counts from here."""
        if self._extractor is not None:
            self._extractor.close()
        self._session = self._extractor = None
        self._feeds = {}
        gc.collect()
        trim_memory()  # the next graph must not reuse freed memory unseen
        reset_peak()
        self._base_mb, self._base_gpu_mb = resident_mb(), self._gpu_mb() or 0.0

    def _gpu_mb(self) -> float | None:
        """Used memory of the GPU, asked only where a graph runs on it: asking takes memory of its own."""
        return gpu_used_mb() if self._on_gpu else None

    def _memory(self) -> dict[str, float | None]:
        used = self._gpu_mb()
        return {
            "peak_mb": peak_mb() - self._base_mb,
            "process_peak_mb": peak_mb(),
            "gpu_mb": None if used is None else used - self._base_gpu_mb,
        }


def reset_peak() -> None:
    """Reset the peak of resident memory that the kernel keeps (proc(5), clear_refs 5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # an older peak stays: the figure is an upper bound


def resident_mb() -> float:
    """Resident memory of this process now, MB (VmRSS, proc(5))."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


def peak_mb() -> float:
    """Peak resident memory of this process since ``reset_peak``, MB."""
    return peak_resident_kb() * 1024 / 1e6


def gpu_used_mb() -> float | None:
    """Memory of the GPU in use by all processes, MB; None without a GPU."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return None
    error, free, total = cudart.cudaMemGetInfo()
    return None if int(error) else (total - free) / 1e6


def main() -> None:
    parent = Channel.to_parent()
    job, _ = parent.receive(BenchJob)
    try:
        worker = BenchWorker(job)
    except FlamestError as error:
        parent.send(Failed.of(error))
        return
    parent.send(Answer(None))
    while True:
        try:
            question, _ = parent.receive(Question)
        except (EOFError, ConnectionResetError):
            return
        try:
            answer: Answer | Failed = Answer(getattr(worker, question.method)(*question.arguments))
        except FlamestError as error:
            answer = Failed.of(error)
        parent.send(answer)


if __name__ == "__main__":
    main()
