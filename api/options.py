"""Keyword settings of ``simulate`` and ``train``: strategy, local training and head, checked with the known names."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, TypeVar, cast

import msgspec
import numpy as np

from ..agent.training.own_head import Head, OwnHead
from ..base.errors import UsageError
from ..coordinator.strategies.composition import strategy_problems
from ..experiments.simulation import Aggregation
from ..experiments.strategy_names import STRATEGIES, check_short_name
from ..fedproto.head import HeadSpec
from ..fedproto.recipes import RECIPES, completed
from ..fedproto.records import RunSettings, Strategy, TrainSettings
from .checks import fixes, shown

Record = TypeVar("Record", Strategy, TrainSettings, HeadSpec, RunSettings)
StrategyName = Literal["fedavg", "fedprox", "feddyn", "fedavgm", "fedadam", "median", "trimmed_mean"]
OwnHeadGiven = Head | Callable[[int, int], Head]

SILO_TERMS = ("mu", "alpha", "average_last")  # settings that go with an aggregation of one's own
STRATEGY_GUIDE = "docs/guides/strategies.md has the settings of every strategy"
HEADS = ("mlp", "rgcf")


class TrainOptions(TypedDict, total=False):
    """Settings of local training and of the head. What is not given is the recipe's; named here are the paper's values.

    Attributes:
        epochs: Epochs in a round; 5.
        batch_size: Rows of a batch; 128.
        learning_rate: Adam's; 0.01.
        weight_decay: Adam's L2 term; 1e-4.
        learning_rate_decay: Round r (from 1) trains at ``learning_rate * decay ** (r - 1)``; 1.
        class_balanced: A silo weights its classes equally; False.
        hidden: Widths of the head's hidden layers; (512, 256). () is softmax regression.
        standardise: Each part of each row gets mean 0 and standard deviation 1; False.
        common: With the head ``rgcf``, the width that both parts are projected to; 256.
        start: Initial weights: ``uniform``, or ``zero``, only without hidden layers.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    learning_rate_decay: float
    class_balanced: bool
    hidden: tuple[int, ...]
    standardise: bool
    common: int
    start: Literal["uniform", "zero"]


class RunOptions(TrainOptions, total=False):
    """``TrainOptions`` and the strategy's settings (docs/guides/strategies.md).

    Attributes:
        mu: FedProx: strength of the pull towards the round's model; 0.01.
        alpha: FedDyn: strength of its correction; 0.01.
        server_momentum: FedAvgM; 0.5 with ``fedavgm``.
        average_last: The final model is the mean of the models of this many last rounds; 0: it is the last one.
        combine: ``mean``, ``median`` or ``trimmed_mean`` of the updates.
        trim: Share of the silos that a trimmed mean leaves out at either end; 0.25 with ``trimmed_mean``.
        clip: Above 0, updates are clipped to this multiple of the median distance from the round's model.
        server_adam: Above 0, FedAdam's learning rate; 0.01 with ``fedadam``.
        server_beta1: FedAdam's; 0.9.
        server_beta2: FedAdam's; 0.99.
        server_tau: FedAdam's; 0.001.
    """

    mu: float
    alpha: float
    server_momentum: float
    average_last: int
    combine: Literal["mean", "median", "trimmed_mean"]
    trim: float
    clip: float
    server_adam: float
    server_beta1: float
    server_beta2: float
    server_tau: float


TRAIN_KEYS = TrainSettings.__struct_fields__
HEAD_KEYS = ("hidden", "standardise", "common", "start")
STRATEGY_KEYS = tuple(key for key in Strategy.__struct_fields__ if key != "name")


def check_names(settings: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise UsageError naming the settings that do not exist, and those that do."""
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise UsageError(
                f"there is no setting {key!r}" + (f"; did you mean {near[0]}?" if near else ""),
                fix=f"known: {', '.join(known)}",
            )


def with_recipe(recipe: str, settings: Mapping[str, Any], *, head: object, strategy: object = None) -> dict[str, Any]:
    """Return ``settings`` with what the recipe fills in. Raises UsageError for a recipe that does not exist.

    A head or a strategy record that is handed in stays as it is. ``strategy``: None without a federation.
    """
    if recipe not in RECIPES:
        raise UsageError(f"there is no recipe {recipe!r}", fix=f"known: {', '.join(RECIPES)}")
    kind = head if isinstance(head, str) else "mlp"
    run = completed({"recipe": recipe, "hidden": settings.get("hidden", ()), "head": {"kind": kind}})
    filled = dict(run.get("train", {}))
    if strategy is not None and not isinstance(strategy, Strategy):
        filled |= run.get("strategy", {})
    if recipe == "default" and isinstance(head, str):
        filled |= {key: value for key, value in run["head"].items() if key in HEAD_KEYS}
        filled |= {"hidden": ()} if kind == "mlp" else {}
    return {**filled, **settings}


def train_settings(settings: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of local training among ``settings``. Raises UsageError."""
    made = record({key: settings[key] for key in TRAIN_KEYS if key in settings}, TrainSettings)
    _raise_for(made.problems(), fix="see help(flamest.TrainOptions)")
    return made


def strategy_settings(
    strategy: StrategyName | Strategy | Aggregation | type,
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any] | None = None,
) -> tuple[str, Strategy, Aggregation | None]:
    """Return the strategy's name, its settings, and the aggregation if one is handed in. Raises UsageError.

    ``recipe``: values of those that are not among ``settings``. A class is called without arguments, an object is
    copied: no run continues with the state of another.
    """
    given = {key: settings[key] for key in STRATEGY_KEYS if key in settings}
    filled = {**{key: value for key, value in (recipe or {}).items() if key in STRATEGY_KEYS}, **given}
    if isinstance(strategy, Strategy):
        if given:
            raise UsageError(
                f"{', '.join(given)}: given next to a strategy record, which has them already",
                fix="set them in the record",
            )
        _raise_for([*strategy.problems(), *strategy_problems(strategy)])
        return strategy.name, strategy, None
    if callable(strategy):
        name = getattr(strategy, "__name__", type(strategy).__name__)
        if extra := [key for key in given if key not in SILO_TERMS]:
            raise UsageError(
                f"{', '.join(extra)}: not with a strategy of one's own, which moves the model by its own rule",
                fix=f"with it go {', '.join(SILO_TERMS)}",
            )
        own = _fresh(strategy, name)
        term = "feddyn" if given.get("alpha") else "fedprox" if given.get("mu") else "fedavg"
        return name, _checked({"name": term, **filled}), own
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        near = difflib.get_close_matches(str(strategy), STRATEGIES, 1)
        raise UsageError(
            f"there is no strategy {strategy!r}" + (f"; did you mean {near[0]}?" if near else ""),
            fix=f"known: {', '.join(STRATEGIES)}; or hand in a function of the round's model and the updates",
        )
    made = _checked(_short_name_settings(strategy, given))
    check_short_name(strategy, made)
    return strategy, _checked(_short_name_settings(strategy, filled)), None


def _short_name_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**STRATEGIES[name], **given}
    if name == "trimmed_mean" and settings["combine"] != "trimmed_mean" and "trim" not in given:
        del settings["trim"]  # so that the contradiction is named, not its consequence
    return settings


def _fresh(strategy: Any, name: str) -> Aggregation:
    """Return an aggregation for one run: an instance of a class, or a copy."""
    if isinstance(strategy, type):
        own = strategy()
        if not callable(own):
            raise UsageError(
                f"the class {name} is no strategy: its objects cannot be called",
                fix="give it a method __call__(self, model, updates) that returns the next model",
            )
        return cast("Aggregation", own)
    try:
        return cast("Aggregation", copy.deepcopy(strategy))
    except Exception as error:
        raise UsageError(
            f"the strategy {name} cannot be copied for this run: {error}",
            fix=f"hand in the class, which is called without arguments once a run: strategy={name}",
        ) from error


def head_of(
    head: Literal["mlp", "rgcf"] | HeadSpec | OwnHeadGiven,
    settings: Mapping[str, Any],
    inputs: int,
    outputs: int,
    vlm_width: int,
) -> HeadSpec | OwnHead:
    """Return the head for features of ``inputs`` dimensions and ``outputs`` classes.

    Raises UsageError, and DataError for a head that does not fit (``bad_head``, ``bad_own_head``).
    """
    given = {key: settings[key] for key in HEAD_KEYS if key in settings}
    if isinstance(head, str):
        if head not in HEADS:
            raise UsageError(
                f"there is no head {head!r}; known: {', '.join(HEADS)}",
                fix="or hand in one of your own (docs/guides/python-api.md)",
            )
        both = 0 < vlm_width < inputs
        if head == "rgcf" and not both:
            raise UsageError(
                "the head rgcf fuses two parts, and those of these embeddings are not known",
                fix="use features of a bundle of two networks, such as blip+slow",
            )
        blocks = (vlm_width, inputs - vlm_width) if both and (head == "rgcf" or given.get("standardise")) else ()
        fields = {"inputs": inputs, "outputs": outputs, "kind": head, "blocks": blocks, **given}
        with fixes({"bad_head": "widths are 1 to 65,536: hidden=(512, 256), common=256"}):
            return record(fields, HeadSpec)
    if given:
        raise UsageError(
            f"{', '.join(given)}: settings of the heads {' and '.join(HEADS)}, not of the given one",
            fix="set them in the head that is given",
        )
    if isinstance(head, HeadSpec):
        if (head.inputs, head.outputs) != (inputs, outputs):
            raise UsageError(
                f"the head takes {head.inputs}-d embeddings to {head.outputs} classes, "
                f"the features have {inputs} dimensions and {outputs} classes",
                fix="make the head for these features and labels",
            )
        return head
    if not callable(head) and not hasattr(head, "forward"):
        raise UsageError(
            f"head is {shown(head)}, expected {' or '.join(HEADS)}, or a head of one's own",
            fix="hand in a class like docs/guides/python-api.md's, or write head='mlp'",
        )
    return OwnHead.open(head, inputs, outputs)


def _checked(fields: Mapping[str, Any]) -> Strategy:
    made = record(fields, Strategy)
    _raise_for([*made.problems(), *strategy_problems(made)])
    return made


def record(fields: Mapping[str, Any], kind: type[Record]) -> Record:
    """Return a record with these fields, which may have NumPy's numbers. Raises UsageError for one of another type."""
    try:
        return msgspec.convert(msgspec.to_builtins({key: _plain(value) for key, value in fields.items()}), kind)
    except (msgspec.ValidationError, TypeError) as error:
        raise UsageError(str(error).replace("`", "'").replace("$.", ""), fix="see help(flamest.simulate)") from error


def _plain(value: Any) -> Any:
    """Return NumPy's numbers and arrays as Python's, those in a sequence too."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _raise_for(problems: list[str], *, fix: str = STRATEGY_GUIDE) -> None:
    if problems:
        text = "; ".join(dict.fromkeys(problems)).replace("name = ", "strategy=")
        raise UsageError(text, fix=fix)
