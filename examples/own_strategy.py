"""Strategies of one's own: FedExP, a function, and a moving average, a class that keeps state from round to round."""

import sys

import flamest as fl
import numpy as np


def fedexp(model, updates, epsilon=1e-3):
    """FedExP (Jhunjhunwala et al. 2023, arXiv 2301.09604): the more silos disagree, the longer the server steps."""
    mean = {name: np.mean([update.params[name] - model[name] for update in updates], axis=0) for name in model}
    squares = sum(float(np.square(u.params[name] - model[name]).sum()) for u in updates for name in model)
    length = sum(float(np.square(step).sum()) for step in mean.values())
    rate = max(1.0, squares / (2 * len(updates) * (length + epsilon)))
    return {name: model[name] + rate * step for name, step in mean.items()}


class MovingAverage:
    """The weighted mean of the updates, averaged over the rounds with weights that halve."""

    def __init__(self):
        self.average = None

    def __call__(self, model, updates):
        total = sum(update.examples for update in updates)
        mean = {name: sum(u.examples * u.params[name] for u in updates) / total for name in model}
        if self.average is not None:
            mean = {name: (self.average[name] + tensor) / 2 for name, tensor in mean.items()}
        self.average = mean
        return mean


f = fl.load(sys.argv[1] if len(sys.argv) > 1 else "miniworld")
silos, test = fl.split(f, silos=4, beta=0.6, seed=0)
for strategy in ("fedavg", fedexp, MovingAverage):
    print(fl.simulate(silos, test=test, rounds=15, strategy=strategy, progress=False), end="\n\n")
