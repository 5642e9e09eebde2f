"""Results of different settings in different folders: OUT for the first ones, OUT/NAME for others.

``OUT/settings.json`` records the settings of the results next to it. Trainings (``OUT/runs``) and features
(``OUT/features``) are shared: each file there is of one job or one kind of embedding.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from ...base.files import read_regular, write_atomic
from .grid import Choices, counted, label_of
from .inputs import Settings

SETTINGS_FILE = "settings.json"
MAX_SETTINGS = 1 << 20  # bytes
Texts = Mapping[str, str]


def setting_texts(settings: Settings, choices: Choices, features: str = "") -> dict[str, str]:
    """All settings that decide a result, as text by name; an option with several values has all of them.

    ``features``: the store that was given, and the kind chosen in it.
    """
    train, split = settings.train, settings.split
    single = {
        "epochs": train.epochs,
        "batch_size": train.batch_size,
        "learning_rate": train.learning_rate,
        "silos": settings.silos,
        "beta": settings.beta,
        "strategies": settings.strategy,
    }
    texts = {
        "dataset": settings.dataset,
        "features": features,
        "rounds": counted(settings.rounds, "round"),
        "seeds": counted(settings.seeds, "seed"),
        "split": f"split {split.kind} {split.share:g}",
        "classes": ", ".join(settings.classes),
    }
    for option, value in single.items():
        values = choices.get(option) or (() if value is None else (value,))
        texts[option] = " / ".join(label_of(option, each) for each in values)
    return texts


def changed_texts(texts: Texts, defaults: Texts, fixed: Collection[str] = ()) -> dict[str, str]:
    """The settings that are not the data set's defaults, by name, without those that an experiment sets itself."""
    shown = ("rounds", "epochs", "batch_size", "learning_rate", "silos", "beta", "strategies", "seeds", "split")
    return {name: texts[name] for name in shown if name not in fixed and texts[name] != defaults[name]}


def output_folder(out: Path, texts: Texts, changed: Texts, fixed: Collection[str] = ()) -> Path:
    """The folder for results of these settings, recorded there: ``out``, or one inside where others are in ``out``.

    ``texts``: all settings; ``changed``: those to name the folder by; ``fixed``: settings that do not matter to this
    experiment, since it has its own. Raises StorageError.
    """
    relevant = {name: text for name, text in texts.items() if name not in fixed}
    name = re.sub(r"[^\w.=+-]+", "-", "_".join(changed.values())).strip("-_") or "defaults"
    digest = hashlib.sha256(msgspec.json.encode(sorted(relevant.items()))).hexdigest()[:8]
    for folder in (out, out / name[:100], out / f"{name[:100]}-{digest}"):
        recorded = _recorded(folder)
        if all(recorded.get(key, text) == text for key, text in relevant.items()):
            break
    folder.mkdir(parents=True, exist_ok=True)
    if merged := {**relevant, **recorded}:
        write_atomic(folder / SETTINGS_FILE, msgspec.json.format(msgspec.json.encode(merged)) + b"\n")
    return folder


def _recorded(folder: Path) -> dict[str, str]:
    path = folder / SETTINGS_FILE
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(read_regular(path, largest=MAX_SETTINGS), type=dict[str, str])
    except msgspec.DecodeError:
        return {}  # damaged: written again
