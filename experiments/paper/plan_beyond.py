"""Beyond the paper: every option against the baseline, seed by seed, in points."""

from __future__ import annotations

import msgspec

from ...fedproto.records import Strategy
from .features import FLAMEST, READY, VARIANTS, table_name
from .jobs import Job
from .plans import PAPER_IID, REDRAWN, Line, Plan, line, seeded, settings_of
from .settings import Context

MOMENTUM, DECAY, LAST = 0.5, 0.95, 5


def beyond(context: Context) -> Plan:
    """Item by item on IID and on Non-IID. A row whose features are not there says so."""
    lines: list[Line] = []
    for setting, partition in settings_of(context).items():
        if setting == PAPER_IID:
            continue
        baseline = context.job(partition=partition)
        base = line(context, f"baseline ({table_name(context.data.main)}), {setting}", baseline)
        lines.append(base)
        lines += [_against(context, f"{name}, {setting}", job, base) for name, job in _options(context, baseline)]
    return Plan(
        "beyond",
        "Beyond the paper: options and their effect on the last round's accuracy",
        tuple(lines),
        (
            "The difference is to the baseline of the same split, paired by seed, with its 95 % interval: an option "
            "helped where the whole interval is above 0. Several options are tried, so one interval in twenty would "
            "miss 0 by chance.",
            f"Server momentum {MOMENTUM}, rate times {DECAY} each round, mean of the last {LAST} rounds' models. "
            "Standardisation is of each row's blocks by their own mean and deviation, not of a feature over the clips.",
            REDRAWN,
        ),
    )


def _options(context: Context, base: Job) -> list[tuple[str, Job]]:
    change = msgspec.structs.replace
    train = base.train
    options = [
        ("per-modality standardisation", change(base, standardise=True)),
        ("class-balanced loss", change(base, train=change(train, class_balanced=True))),
        ("server momentum", change(base, strategy=Strategy(server_momentum=MOMENTUM))),
        ("learning-rate decay", change(base, train=change(train, learning_rate_decay=DECAY))),
        ("average of the last rounds", change(base, strategy=Strategy(average_last=min(LAST, base.rounds)))),
    ]
    if context.data.main == FLAMEST:
        readings = [(f"{VARIANTS[name]} + Slow", f"{name}+slow") for name in VARIANTS]
        stacked = [("BLIP text and cross embeddings stacked", "blip-text+blip+slow")]
        options += [(name, change(base, extractor=extractor)) for name, extractor in stacked + readings]
    return options


def _against(context: Context, name: str, job: Job, base: Line) -> Line:
    if context.data.state(job.extractor) != READY:
        return Line(name, status=context.data.state(job.extractor))
    return Line(name, seeded(context, job), against=base.jobs)
