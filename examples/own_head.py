"""A head of one's own: scores are scaled cosines between an embedding and a direction for each class.

``forward`` returns the scores, and a function from their gradient to the gradients of the parameters.
"""

import sys

import flamest as fl
import numpy as np


class CosineHead:
    """One direction per class and one scale."""

    def __init__(self, inputs, classes):
        self.shapes = {"directions": (classes, inputs), "scale": (1,)}

    def initial(self, random):
        return {"directions": random.normal(size=self.shapes["directions"]), "scale": np.array([20.0])}

    def forward(self, params, x):
        directions = params["directions"]
        length = np.linalg.norm(directions, axis=1, keepdims=True)
        x, unit = x / np.linalg.norm(x, axis=1, keepdims=True), directions / length
        cosines = x @ unit.T

        def gradients(of_scores):
            of_unit = params["scale"] * of_scores.T @ x
            along = (of_unit * unit).sum(axis=1, keepdims=True) * unit  # a longer direction changes no cosine
            return {"directions": (of_unit - along) / length, "scale": np.array([(of_scores * cosines).sum()])}

        return params["scale"] * cosines, gradients


f = fl.load(sys.argv[1] if len(sys.argv) > 1 else "miniworld")
silos, test = fl.split(f, silos=4, beta=0.6, seed=0)
for head in (CosineHead, "mlp"):
    print(fl.simulate(silos, test=test, rounds=15, head=head, learning_rate=0.02, progress=False), end="\n\n")
