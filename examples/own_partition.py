"""A partition of one's own: every silo is a place, so a scene's clips are all in one silo."""

import sys

import flamest as fl


def by_scene(features, silos, random):
    """Give whole groups to the silos in turn, in random order."""
    scenes = sorted(set(features.groups))
    owner = {scenes[place]: number % silos for number, place in enumerate(random.permutation(len(scenes)))}
    return [[row for row, scene in enumerate(features.groups) if owner[scene] == silo] for silo in range(silos)]


def few_classes(features, silos, random, classes=10):
    """Give each silo some of the classes, and divide a class among the silos that have it."""
    has = [set(random.choice(len(features.labels), min(classes, len(features.labels)), False)) for _ in range(silos)]
    parts = [[] for _ in range(silos)]
    for label in range(len(features.labels)):
        takers = [silo for silo in range(silos) if label in has[silo]]
        for row in (row for row, number in enumerate(features.y) if number == label and takers):
            parts[random.choice(takers)].append(row)
    return parts


f = fl.load(sys.argv[1] if len(sys.argv) > 1 else "miniworld")
for partition in (by_scene, few_classes, "iid"):
    silos, test = fl.split(f, silos=4, seed=0, partition=partition)
    run = fl.simulate(silos, test=test, rounds=15, strategy="fedprox", progress=False)
    print(silos, run, sep="\n", end="\n\n")
