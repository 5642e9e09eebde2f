"""FLAMeST: federated action recognition from frozen BLIP and Slow embeddings.

``import flamest as fl`` offers the names of ``__all__``, each loaded when it is first used:

    f = fl.load("features.sqlite")
    silos, test = fl.split(f, silos=4, beta=0.6, seed=0)
    run = fl.simulate(silos, test=test, rounds=20, strategy="fedprox", mu=0.01)
    print(run.accuracy)
    run.save("model.safetensors")

docs/guides/python-api.md is the guide; all other names may change. The repository root is this package: README.md
says what it does and ARCHITECTURE.md what each folder holds.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent.predict import Prediction as Prediction
    from .agent.timeline.events import Timeline as Timeline
    from .agent.timeline.events import TimelineEvent as TimelineEvent
    from .agent.training.own_head import Head as Head
    from .api.bundles import Bundle as Bundle
    from .api.bundles import export_bundle as export_bundle
    from .api.bundles import open_bundle as open_bundle
    from .api.bundles import predict as predict
    from .api.features import Features as Features
    from .api.labels import LabelsImport as LabelsImport
    from .api.labels import import_labels as import_labels
    from .api.loading import load as load
    from .api.models import Model as Model
    from .api.models import load_model as load_model
    from .api.options import RunOptions as RunOptions
    from .api.options import TrainOptions as TrainOptions
    from .api.runs import Run as Run
    from .api.silos import Silos as Silos
    from .api.silos import Split as Split
    from .api.silos import split as split
    from .api.timelines import timeline as timeline
    from .api.training import simulate as simulate
    from .api.training import train as train
    from .base.errors import FlamestError as FlamestError
    from .experiments.partition import LabelSkew as LabelSkew
    from .experiments.simulation import SiloUpdate as SiloUpdate
    from .fedproto.records import Strategy as Strategy
    from .runtime.clip_records import Segment as Segment

# From 1.29 on ONNX Runtime's Linux wheels send telemetry to their maker unless this is set
# (https://github.com/microsoft/onnxruntime/pull/27379). It is read when onnxruntime is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.2.0"
_HOMES = {  # the module of each name that is offered
    "Bundle": "api.bundles",
    "Features": "api.features",
    "FlamestError": "base.errors",
    "Head": "agent.training.own_head",
    "LabelSkew": "experiments.partition",
    "LabelsImport": "api.labels",
    "Model": "api.models",
    "Prediction": "agent.predict",
    "Run": "api.runs",
    "RunOptions": "api.options",
    "Segment": "runtime.clip_records",
    "SiloUpdate": "experiments.simulation",
    "Silos": "api.silos",
    "Split": "api.silos",
    "Strategy": "fedproto.records",
    "Timeline": "agent.timeline.events",
    "TimelineEvent": "agent.timeline.events",
    "TrainOptions": "api.options",
    "export_bundle": "api.bundles",
    "import_labels": "api.labels",
    "load": "api.loading",
    "load_model": "api.models",
    "open_bundle": "api.bundles",
    "predict": "api.bundles",
    "simulate": "api.training",
    "split": "api.silos",
    "timeline": "api.timelines",
    "train": "api.training",
}
__all__ = [
    "Bundle",
    "Features",
    "FlamestError",
    "Head",
    "LabelSkew",
    "LabelsImport",
    "Model",
    "Prediction",
    "Run",
    "RunOptions",
    "Segment",
    "SiloUpdate",
    "Silos",
    "Split",
    "Strategy",
    "Timeline",
    "TimelineEvent",
    "TrainOptions",
    "export_bundle",
    "import_labels",
    "load",
    "load_model",
    "open_bundle",
    "predict",
    "simulate",
    "split",
    "timeline",
    "train",
]


if not TYPE_CHECKING:  # a type checker reports names that do not exist

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'flamest' has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
