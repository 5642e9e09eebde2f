"""Settings that a command takes from the silo's agent.toml where an option is not given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...base.console import say

if TYPE_CHECKING:
    from ...base.place import Place
    from ..extraction.aliases import LabelAliases
    from ..extraction.groups import ClipRules
    from ..settings import AgentSettings

OwnStoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="The feature store, one file, which extract fills; by default agent.toml's."),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", help="The bundle whose features the model was trained on; by default agent.toml's."),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="FILE",
        help="MODEL.safetensors from train or the coordinator; by default the one that this silo's daemon uses.",
    ),
]


def own_settings(place: Place, *missing: str) -> AgentSettings:
    """Return the silo's settings; ``missing``: the options that were not given, like ``--bundle DIR``.

    Raises UsageError where there are none, and as ``load_agent_settings``.
    """
    from ...base.errors import UsageError
    from ..settings import load_agent_settings

    try:
        return load_agent_settings(place.path)
    except UsageError as error:
        names = " and ".join(option.split()[0] for option in missing)
        given = "both, like" if len(missing) == 2 else "it, like" if len(missing) == 1 else "them, like"
        raise UsageError(
            f"{names}: not given, and there is no agent.toml here that says which",
            fix=f"give {given} {' '.join(missing)}; or the folder of agent.toml: --dir DIR",
        ) from error


def model_in_use(settings: AgentSettings) -> Path:
    """Return the file of the model that the silo's daemon uses. Raises DataError (``no_model``) before there is one."""
    from ...base.errors import DataError
    from ..end_of_run import FINAL_MODEL

    path = settings.state / FINAL_MODEL
    if not path.exists():
        raise DataError(
            f"this silo has no model of a run yet: {path} is not there",
            fix="wait for the end of the run (flamest-agent status), or give --model MODEL.safetensors",
            code="no_model",
        )
    return path


def final_model(settings: AgentSettings) -> Path:
    """Return the file of the last run's final model, also where the silo uses another one. Raises as above."""
    from ..end_of_run import REFUSED_MODEL

    used, refused = model_in_use(settings), settings.state / REFUSED_MODEL
    return refused if refused.exists() else used


def own_rules(place: Place, videos: Path, *, say_so: bool = False) -> ClipRules:
    """Return the rules for groups and classes that hold for ``videos``: those of ``settings_of_videos``, or defaults.

    Raises as it does.
    """
    from ..extraction.groups import DEFAULT_RULES

    settings = settings_of_videos(place, videos, say_so=say_so)
    return DEFAULT_RULES if settings is None else settings.rules


def settings_of_videos(place: Place, videos: Path, *, say_so: bool = False) -> AgentSettings | None:
    """Return the settings whose rules and aliases hold for ``videos``; None where none do.

    They are of the agent.toml that ``--config`` or ``--dir`` gives, or of one here if it watches this folder: a command
    by hand must not label the daemon's clips otherwise than the daemon does. ``say_so``: print which rules are used
    where an agent.toml has its own, and why. Raises as ``load_agent_settings`` for a file that is there or was given.
    """
    from ...base.errors import UsageError
    from ..extraction.groups import DEFAULT_RULES
    from ..settings import load_agent_settings

    if place.config is not None or place.dir is not None:
        return load_agent_settings(place.path)
    try:
        path = place.path
    except UsageError:  # there is none here
        return None
    settings = load_agent_settings(path)
    watched = settings.videos is not None and settings.videos.resolve() == videos.resolve()
    if say_so and settings.rules != DEFAULT_RULES:
        if watched:
            say(f"groups and classes by the rules of {path}, which watches this folder")
        else:
            watches = f"watches {settings.videos}" if settings.videos else "names no videos"
            say(
                f"groups and classes by the default rules, not by {path}: it {watches}, not {videos}; "
                f"for its rules give --config {path}"
            )
    return settings if watched else None


def own_aliases(place: Place, store: Path) -> LabelAliases:
    """Return the aliases that hold for the labels of ``store``: of an agent.toml as ``own_rules``, if it is its store.

    Raises as ``own_rules``.
    """
    from ...base.errors import UsageError
    from ..extraction.aliases import NO_ALIASES
    from ..settings import load_agent_settings

    given = place.config is not None or place.dir is not None
    try:
        settings = load_agent_settings(place.path)
    except UsageError:
        if given:
            raise
        return NO_ALIASES
    return settings.aliases if given or settings.store.resolve() == store.resolve() else NO_ALIASES


def own_paths(place: Place, *, say_so: bool, **given: Path | None) -> tuple[AgentSettings, dict[str, Path]]:
    """Return the settings and the paths ``given``, by their key in agent.toml; those that are None are taken from it.

    ``say_so``: print which were taken. Raises as ``own_settings``, and SettingsError for one that agent.toml has not.
    """
    from ...base.errors import SettingsError

    missing = [name for name, path in given.items() if path is None]
    settings = own_settings(place, *(f"--{name} {'FILE' if name == 'store' else 'DIR'}" for name in missing))
    taken: dict[str, Path] = {}
    for name in missing:
        path = getattr(settings, name)
        if path is None:
            raise SettingsError(f"{place.path} names no {name}", fix=f"set {name} in it, or give --{name} DIR")
        taken[name] = path
    if say_so:
        say(f"from {place.path}: " + ", ".join(f"{name} {path}" for name, path in taken.items()))
    return settings, {**{name: path for name, path in given.items() if path is not None}, **taken}
