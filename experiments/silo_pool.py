"""Silos of a simulation that train in threads, each with a trainer of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

from ..agent.training.dataset import FeatureTable
from ..agent.training.feddyn import Correction
from ..agent.training.federated import train_silo
from ..agent.training.own_head import OwnHead, open_trainer
from ..agent.training.private import Protection
from ..agent.training.trainer import Trainer, evaluate
from ..coordinator.strategies.contributions import InMemoryContribution
from ..fedproto.codecs import FlatParams, apply_delta, encode_delta
from ..fedproto.head import HeadSpec, Params
from ..fedproto.records import Evaluation, RunSettings
from ..fedproto.tensors import decode_params, encode_params


@dataclass(frozen=True, eq=False)
class SimulatedSilo:
    """A silo's name and its training rows, without held-out ones."""

    name: str
    train: FeatureTable


class SiloPool:
    """``workers`` threads that train silos, each with a trainer of its own."""

    def __init__(
        self,
        run: RunSettings,
        spec: HeadSpec | OwnHead,
        silos: Sequence[SimulatedSilo],
        protection: Protection,
        *,
        threads: int,
        workers: int,
    ) -> None:
        self._run = run
        self._spec = spec
        self._protection = protection
        self._silos = sorted(silos, key=lambda silo: silo.name)  # the coordinator's order
        # Of a lossy codec, by silo: the part of its last update that was not sent.
        self._residuals: dict[str, FlatParams] = {}
        self.sent_bytes = 0  # payloads of all updates
        self._corrections: dict[str, Correction] = {silo.name: {} for silo in silos}  # FedDyn's h_i
        self._trainers: SimpleQueue[Trainer] = SimpleQueue()
        workers = max(1, min(workers, len(silos)))
        for _ in range(workers):
            self._trainers.put(open_trainer(spec, threads=threads))
        self._pool = ThreadPoolExecutor(workers, "silo")
        self._exit = ExitStack()

    def __enter__(self) -> SiloPool:
        if isinstance(self._spec, OwnHead):  # NumPy's products; ONNX Runtime's threads are the trainers' own
            self._exit.enter_context(_one_thread_per_product())
        self._exit.callback(self._pool.shutdown, cancel_futures=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def first_params(self) -> Params:
        """Return the model that the run starts from."""
        with self._trainer() as trainer:
            return trainer.first_params(self._run.seed)

    def contributions(self, number: int, params: Params) -> Iterator[InMemoryContribution]:
        """Every silo's contribution to round ``number``, in ascending order of name."""
        futures: dict[str, Future[bytes]] = {}
        # The largest silo first, so that small ones fill the gaps at the end of the round.
        for silo in sorted(self._silos, key=lambda silo: -len(silo.train)):
            futures[silo.name] = self._pool.submit(self._train, silo, number, params)
        for silo in self._silos:
            payload = futures.pop(silo.name).result()
            self.sent_bytes += len(payload)
            yield InMemoryContribution(silo.name, len(silo.train), self._received(silo.name, payload, params))

    def _received(self, name: str, payload: bytes, base: Params) -> Params:
        codec, whose = self._run.codec, f"update from silo '{name}'"
        if codec == "fp32":
            return decode_params(self._spec, payload, whose=whose)
        return apply_delta(codec, self._spec, payload, base, whose=whose)

    def evaluate(self, params: Params, test: FeatureTable) -> Evaluation:
        with self._trainer() as trainer:
            return evaluate(trainer, params, test)

    @contextmanager
    def _trainer(self) -> Iterator[Trainer]:
        trainer = self._trainers.get()
        try:
            yield trainer
        finally:
            self._trainers.put(trainer)

    def _train(self, silo: SimulatedSilo, number: int, params: Params) -> bytes:
        """Train the silo on the round's model; returns the payload of its update."""
        run = self._run
        with self._trainer() as trainer:
            correction = self._corrections[silo.name]
            trained, correction = train_silo(
                trainer, run, silo.name, number, params, silo.train, correction, self._protection
            )
            self._corrections[silo.name] = correction  # every round of a simulation counts
        if run.codec == "fp32":
            return encode_params(self._spec, trained.params)
        encoded = encode_delta(run.codec, self._spec, trained.params, params, self._residuals.get(silo.name))
        self._residuals[silo.name] = encoded.residual
        return encoded.payload


def _one_thread_per_product() -> AbstractContextManager[Any]:
    """Let NumPy's products use one core: the silos share the cores, and bits do not depend on their number."""
    try:
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError:
        return nullcontext()
    return cast("AbstractContextManager[Any]", threadpool_limits(1, user_api="blas"))
