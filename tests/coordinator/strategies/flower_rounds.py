"""Flower's strategies over given updates, for test_flower.py; a script for a Python that has flwr.

``python flower_rounds.py GIVEN.npz MADE.npz``. Given: ``cases``, JSON (a case's name to ``strategy``,
the class, and ``arguments``); for every tensor of the model ``start.NAME`` float32 [...] and ``NAME`` float32
[rounds, silos, ...]; ``examples`` int64 [silos]; ``present`` bool [rounds, silos]. Made: for every case and tensor
``CASE.NAME`` float32 [rounds, ...], the model after each round, and ``versions``, JSON.

Flower's own loop (``Strategy.start``) runs the rounds; only the network between server and silos is replaced.
"""

from __future__ import annotations

import json
import logging
import os
import sys

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import flwr
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as strategies
from flwr.serverapp.grid import Grid
from flwr.supercore.task_identity import TaskIdentity

GIVEN = np.load(sys.argv[1])
NAMES = [name.removeprefix("start.") for name in GIVEN.files if name.startswith("start.")]
EXAMPLES, PRESENT = GIVEN["examples"], GIVEN["present"]


class PaperFedAdam(strategies.FedAdam):
    """Flower's FedAdam without its two additions to the paper: v starts at tau², the steps are not bias-corrected."""

    def aggregate_train(self, server_round, replies):
        if self.v_t is None:
            self.v_t = {name: np.full_like(tensor, self.tau**2) for name, tensor in self.current_arrays.items()}
            self.rate = self.eta
        power = server_round + 1.0  # Flower's: rounds count from 1, the power from 2
        self.eta = self.rate * (1 - self.beta_1**power) / np.sqrt(1 - self.beta_2**power)
        return super().aggregate_train(server_round, replies)


class MedianClipping(strategies.DifferentialPrivacyServerSideFixedClipping):
    """Flower's clipping without noise, its bound set each round: ``times`` the median of the updates' lengths."""

    def __init__(self, times: float) -> None:
        super().__init__(federated(strategies.FedAvg), 0.0, 1.0, len(EXAMPLES))
        self.times = times

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        base = np.concatenate([self.current_arrays[name].numpy().ravel() for name in NAMES], dtype=float)
        lengths = []
        for reply in replies:
            arrays = reply.content["arrays"]
            lengths.append(np.linalg.norm(np.concatenate([arrays[name].numpy().ravel() for name in NAMES]) - base))
        self.clipping_norm = self.times * float(np.median(lengths))
        return super().aggregate_train(server_round, replies)


class Silos(Grid):
    """Answers at once with the given updates, in ascending order of node, which is the silo's place plus 1."""

    run = None

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def get_node_ids(self):
        return range(1, len(EXAMPLES) + 1)

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            place, number = message.metadata.dst_node_id - 1, message.content["config"]["server-round"] - 1
            if PRESENT[number, place]:
                arrays = ArrayRecord({name: Array(GIVEN[name][number, place]) for name in NAMES})
                metrics = MetricRecord({"num-examples": int(EXAMPLES[place])})
                replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message))
        return replies


def federated(kind, **arguments):
    """A strategy of Flower's that trains on all silos and evaluates on none."""
    return kind(fraction_evaluate=0.0, **arguments)


def rounds(strategy) -> list[dict[str, np.ndarray]]:
    """The model after every round."""
    models = []

    def keep(number, arrays):
        models.append({name: array.numpy() for name, array in arrays.items()})

    start = ArrayRecord({name: Array(GIVEN[f"start.{name}"]) for name in NAMES})
    strategy.start(Silos(), start, num_rounds=len(PRESENT), evaluate_fn=keep)
    return models[1:]  # the first is the start


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # what a message says it comes from
    made = {"versions": np.array(json.dumps({"flwr": flwr.__version__, "numpy": np.__version__}))}
    for case, settings in json.loads(str(GIVEN["cases"])).items():
        if settings["strategy"] == "MedianClipping":
            strategy = MedianClipping(**settings["arguments"])
        elif settings["strategy"] == "PaperFedAdam":
            strategy = federated(PaperFedAdam, **settings["arguments"])
        else:
            strategy = federated(getattr(strategies, settings["strategy"]), **settings["arguments"])
        models = rounds(strategy)
        made |= {f"{case}.{name}": np.stack([model[name] for model in models]) for name in NAMES}
    np.savez(sys.argv[2], **made)


if __name__ == "__main__":
    main()
