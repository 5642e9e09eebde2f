"""A rival's row beside ours: what it was trained on, and whether it was tested on the same scenes."""

from __future__ import annotations

from ...base.errors import FlamestError
from ..datasets import groups_digest
from .external_runs import GivenRun
from .settings import Context
from .splits import split_data


def rival_note(context: Context, given: GivenRun) -> str:
    """What is to be said of the row: networks, clips, and the warning where the test is another."""
    how = f"{given.scale} networks, one seed, {given.how}" if given.scale else given.how
    return "; ".join(text for text in (split_warning(context, given), how) if text)


def split_warning(context: Context, given: GivenRun) -> str:
    """Why the rival's number must not be read against the table's; empty where both hold out the same scenes."""
    settings, theirs = context.settings, given.details.split.test_groups_sha256
    if not theirs:
        return "WARNING: its result does not say which clips it was tested on"
    try:
        split = split_data(context.data, settings.split, dataset=settings.dataset, videos=settings.videos)
    except FlamestError:  # the table's own runs will say so
        return ""
    groups = {context.data.groups[row] for row in split.test}
    if settings.split.kind == "groups" and groups_digest(groups) == theirs:
        return ""
    tested = f"{len(split.test):,} clips, split {settings.split.kind}"
    return f"WARNING: not tested on this table's test clips ({tested})"


def rival_warnings(context: Context) -> list[str]:
    """For the person at the terminal: each rival's warning, with what to do."""
    said = []
    for given in (context.given.kd, context.given.actionclip):
        warning = split_warning(context, given) if given else ""
        if given and warning:
            text = warning.removeprefix("WARNING: ")
            command = f"flamest-experiment {given.name.lower()} --test-share {context.settings.split.share:g}"
            way_out = f"; to compare: {command}" if context.settings.split.kind == "groups" else ""
            said.append(f"{given.name}: {text}{way_out}")
    return said
