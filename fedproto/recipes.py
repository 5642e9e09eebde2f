"""Recipes: the settings of a run that nobody has to choose, and those of the paper.

``paper`` is the reading of the paper's section 4 in docs/paper.md: a perceptron, Adam at 0.01, plain averaging; exactly
the defaults of the settings' records. ``default`` was chosen on training rows of several data sets, small silos
counting as much as large ones (docs/decisions/044-the-default-recipe.md, bench/recipes.py): softmax regression on
standardised rows, from zeros, which needs no statistics of other silos; Adam in batches at a rate that falls from round
to round; and a final model that is the mean of the last rounds' models.

A recipe only fills in what is not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..base.errors import UsageError
from .head import HeadSpec
from .records import Strategy, TrainSettings

Recipe = Literal["default", "paper"]
RECIPES: tuple[Recipe, ...] = ("default", "paper")
DEFAULT: Recipe = "default"

_TRAIN = {"learning_rate": 1e-3, "learning_rate_decay": 0.95}
_STRATEGY = {"average_last": 10}
_LINEAR_HEAD = {"standardise": True, "start": "zero"}
_LAYERED_HEAD = {"standardise": True}  # with hidden layers or gated fusion, which cannot start from zeros


@dataclass(frozen=True)
class RecipeSettings:
    """Settings that a recipe says, for embeddings of one width and a number of classes."""

    head: HeadSpec
    train: TrainSettings
    strategy: Strategy


def completed(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table [run] with what its recipe fills in; ``recipe`` itself stays as it is.

    A value of the wrong type or an unknown recipe is left for the caller's decoding to report.
    """
    if run.get("recipe", DEFAULT) != "default":
        return dict(run)
    linear = not run.get("hidden", ()) and _table(run, "head").get("kind", "mlp") == "mlp"
    recipe = {"head": _LINEAR_HEAD if linear else _LAYERED_HEAD, "train": _TRAIN, "strategy": _STRATEGY}
    filled: dict[str, Any] = {
        name: {**values, **run.get(name, {})}
        for name, values in recipe.items()
        if isinstance(run.get(name, {}), Mapping)
    }
    return {**({"hidden": []} if linear else {}), **run, **filled}


def recipe_settings(
    recipe: Recipe,
    inputs: int,
    outputs: int,
    *,
    blocks: tuple[int, ...] = (),
    given: Mapping[str, Any] | None = None,
) -> RecipeSettings:
    """Return a recipe's settings; ``given``: those of a table [run] that it does not fill in.

    ``blocks``: widths of the networks' parts in a row, each of which a standardised head treats by itself. Raises
    UsageError for a recipe that does not exist, DataError (``bad_head``) and msgspec.ValidationError for given settings
    that are wrong.
    """
    if recipe not in RECIPES:
        raise UsageError(f"there is no recipe {recipe!r}", fix=f"known: {', '.join(RECIPES)}")
    run = completed({"recipe": recipe, **(given or {})})
    head = dict(_table(run, "head"))
    if head.get("standardise") or head.get("kind") == "rgcf":
        head.setdefault("blocks", list(blocks))
    if "hidden" in run:
        head["hidden"] = run["hidden"]
    return RecipeSettings(
        msgspec.convert({"inputs": inputs, "outputs": outputs, **head}, HeadSpec),
        msgspec.convert(run.get("train", {}), TrainSettings),
        msgspec.convert(run.get("strategy", {}), Strategy),
    )


def _table(run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = run.get(name, {})
    return value if isinstance(value, Mapping) else {}
