"""FedProx: silos are pulled back to the round's model, the coordinator averages as FedAvg does.

Li et al. 2020, algorithm 2 (https://arxiv.org/abs/1812.06127). Every silo minimises L(w) + (mu/2)·‖w − w_t‖²; that term
is in agent/training/fedprox.py. Between rounds the coordinator carries nothing, and any ``combine``, ``clip`` and
server optimiser may follow. Settings: ``name = "fedprox"``, ``mu``, whose rule fedproto/records.py holds because silos
check it too.
"""

from __future__ import annotations

from .algorithm import Algorithm

FEDPROX = Algorithm(
    setting="name",
    enabled=lambda strategy: strategy.name == "fedprox",
    validate=lambda strategy: strategy.term_problems("fedprox", "mu"),
)
