"""Compare strategies on silos that differ, and the federation with what each silo reaches alone.

Run it on your own feature store or .npz file: python simulate.py features.sqlite
"""

import sys

import flamest as fl

f = fl.load(sys.argv[1] if len(sys.argv) > 1 else "miniworld")
silos, test = fl.split(f, silos=4, beta=0.6, seed=0)
print(f, silos, sep="\n\n", end="\n\n")

settings = {"test": test, "rounds": 20, "seed": 0, "progress": False}
runs = {
    "FedAvg": fl.simulate(silos, **settings),
    "FedProx": fl.simulate(silos, strategy="fedprox", mu=0.01, **settings),
    "FedProx, updates in int8": fl.simulate(silos, strategy="fedprox", mu=0.01, codec="int8", **settings),
    "FedAvg, a tenth of the learning rate": fl.simulate(silos, learning_rate=0.001, **settings),
    "all clips in one place": fl.train(silos, **settings),
}
for name, silo in silos.items():
    runs[f"{name} alone"] = fl.train(silo, **settings)
for name, run in runs.items():
    size = f", {run.bytes_per_silo_round / 1e6:.1f} MB a silo and round" if run.bytes_per_silo_round else ""
    print(f"{run.accuracy:6.1%}  {name} (best round {run.best:.1%}{size})")
