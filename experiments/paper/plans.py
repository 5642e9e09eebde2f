"""What a table is made of, and the tables of the paper as plans: which runs, beside which printed number.

A plan looks at the context only: it trains nothing, and two plans that ask for the same run share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ...fedproto.records import Strategy
from ..partition import LabelSkew
from . import numbers
from .baseline_notes import rival_note
from .external_runs import GivenRun
from .features import FLAMEST, READY, table_name
from .jobs import Job, PartitionRule
from .numbers import ACTIONCLIP, KD, PaperValue
from .settings import Context
from .splits import SplitRule

TABLE_ORDER = (
    "blip", "clip", KD, "resnet3d", "slow", "slow-uniform", "i3d", "videomae", "blip-text", "blip-text+resnet3d",
    "blip-text+slow", "blip-text+i3d", "blip+resnet3d", "blip+i3d", "blip+slow",
)  # fmt: skip
MU_GRID, MU = (0.001, 0.01, 0.1), 0.01
ALPHA_GRID, ALPHA = (0.001, 0.01, 0.1), 0.01
NOT_RUN = "not run"
REDRAWN = (
    "A Dirichlet split is drawn again until no silo has less than an eighth of its even share of the clips "
    "(and at least 2)."
)
IID, PAPER_IID = "IID", "Dirichlet β=1 (the paper's IID)"


@dataclass(frozen=True)
class Line:
    """A row to be: its runs (one per seed), or what stands there instead of them."""

    name: str
    jobs: tuple[Job, ...] = ()
    paper: PaperValue | None = None
    status: str = ""  # why there are no runs
    note: str = ""
    against: tuple[Job, ...] = ()  # runs of the same seeds to take the difference to
    given: GivenRun | None = None


@dataclass(frozen=True)
class Plan:
    name: str  # the command's
    title: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # of agent/training/dataset.py's EXTRA, beside best, last and paper
    independent: bool = True  # whether a row's runs are, so that their mean has an interval

    @property
    def jobs(self) -> list[Job]:
        return [job for line in self.lines for job in (*line.jobs, *line.against)]


def seeded(context: Context, job: Job) -> tuple[Job, ...]:
    return tuple(msgspec.structs.replace(job, seed=seed) for seed in range(context.settings.seeds))


def line(context: Context, name: str, job: Job, paper: PaperValue | None = None, note: str = "") -> Line:
    """The runs of ``job`` over all seeds, or why there are none. The paper's number only beside its extractor."""
    state = context.data.state(job.extractor)
    return Line(name, seeded(context, job) if state == READY else (), paper, "" if state == READY else state, note)


def on_main(context: Context, printed: PaperValue | None) -> PaperValue | None:
    """The paper's ablations are of BLIP+Slow: beside another extractor its number would mislead."""
    return printed if context.data.main == FLAMEST else None


def table2(context: Context) -> Plan:
    return Plan(
        "table2",
        f"Table 2: extractors, federated over {context.settings.silos} silos, IID",
        _extractor_lines(context, numbers.TABLE_2.get(context.paper, {}), context.job()),
        (
            _how(context),
            "Slow (uniform frames) is not in the paper: 8 evenly spread frames instead of k-means keyframes.",
        ),
    )


def central_job(context: Context, extractor: str = "") -> Job:
    """One silo with all clips; the paper's 80 epochs in passes of the local epochs, Adam anew in each."""
    passes = math.ceil(context.settings.scale.central_epochs / context.settings.train.epochs)
    return context.job(extractor, partition=context.iid(1), rounds=passes)


def table3(context: Context) -> Plan:
    printed = numbers.TABLE_3.get(context.paper, {})
    job = central_job(context)
    lines = _extractor_lines(context, printed, job)
    rival = _rival(context, context.given.actionclip, ACTIONCLIP, printed.get(ACTIONCLIP))
    return Plan(
        "table3",
        "Table 3: extractors, centralised",
        (*lines[:-1], rival, lines[-1]),
        (
            f"{job.rounds * job.train.epochs} epochs on all training clips, measured every {job.train.epochs}; Adam's "
            "moments start anew after each measurement, as they do in every round of a silo.",
        ),
    )


def table4(context: Context) -> Plan:
    printed = numbers.TABLE_4.get(context.paper, {})
    cost = printed.get(numbers.FLAMEST)
    timed = msgspec.structs.replace(central_job(context), timed=True)
    ours = line(context, table_name(context.data.main), timed, on_main(context, cost.accuracy if cost else None))
    rival = printed.get(ACTIONCLIP)
    return Plan(
        "table4",
        "Table 4: ActionCLIP and FLAMeST, centralised: accuracy, seconds, trainable parameters",
        (_rival(context, context.given.actionclip, ACTIONCLIP, rival.accuracy if rival else None), ours),
        (
            "Seconds are of training and testing the classifier on features that are extracted already, on one core "
            "of this machine (the paper: an A100). ActionCLIP's are its own training on frames.",
        ),
        ("train_s", "test_s", "parameters"),
    )


def settings_of(context: Context) -> dict[str, PartitionRule]:
    """The three splits that the paper's two words stand for; two where β = 1 is asked for, which is the paper's IID."""
    skewed = {f"Non-IID (β={context.settings.beta:g})": context.dirichlet()}
    paper = {} if context.settings.beta == 1 else {PAPER_IID: context.dirichlet(1.0)}
    return {IID: context.iid(), **paper, **skewed}


def _printed_setting(name: str) -> str:
    return "Non-IID" if name.startswith("Non-IID") else "IID"


def table5(context: Context) -> Plan:
    printed = numbers.TABLE_5.get(context.paper, {})
    methods = [Strategy(), Strategy("fedprox", mu=MU), Strategy("feddyn", alpha=ALPHA)]
    methods += [Strategy("fedprox", mu=mu) for mu in MU_GRID if mu != MU]
    methods += [Strategy("feddyn", alpha=alpha) for alpha in ALPHA_GRID if alpha != ALPHA]
    lines = []
    for strategy in methods:
        for setting, partition in settings_of(context).items():
            method, parameter = _method(strategy)
            default = strategy in methods[:3]
            paper = printed.get((method, _printed_setting(setting))) if default else None
            job = context.job(partition=partition, strategy=strategy)
            lines.append(line(context, f"{method}{parameter}, {setting}", job, on_main(context, paper)))
    return Plan(
        "table5",
        f"Table 5: FedAvg, FedProx and FedDyn, {context.settings.silos} silos",
        tuple(lines),
        (
            f"mu = {MU} and alpha = {ALPHA} were fixed beforehand; the rest of the grids ({MU_GRID} and {ALPHA_GRID}) "
            "stands below them, none was chosen by its test accuracy. The paper gives neither.",
            REDRAWN,
        ),
        ("smallest_silo",),
    )


def _method(strategy: Strategy) -> tuple[str, str]:
    names = {"fedavg": "FedAvg", "fedprox": "FedProx", "feddyn": "FedDyn"}
    parameter = {"fedavg": "", "fedprox": f" mu={strategy.mu:g}", "feddyn": f" alpha={strategy.alpha:g}"}
    return names[strategy.name], parameter[strategy.name]


def table6(context: Context) -> Plan:
    printed = numbers.TABLE_6 if context.paper == numbers.UCF101 else {}
    lines = []
    for hidden in numbers.TABLE_6:
        train, test = printed.get(hidden, (None, None))
        note = f"the paper's training accuracy: {train}" if train and context.data.main == FLAMEST else ""
        lines.append(line(context, str(list(hidden)), context.job(hidden=hidden), on_main(context, test), note))
    return Plan("table6", "Table 6: five classifiers", tuple(lines), columns=("train_accuracy", "parameters"))


def table7(context: Context) -> Plan:
    printed = numbers.TABLE_7.get(context.paper, {})
    lines = []
    for epochs in (5, 10, 15):
        train = msgspec.structs.replace(context.settings.train, epochs=epochs)
        for setting, partition in settings_of(context).items():
            paper = on_main(context, printed.get((epochs, _printed_setting(setting))))
            job = context.job(partition=partition, train=train)
            lines.append(line(context, f"{epochs} epochs, {setting}", job, paper))
    return Plan("table7", "Table 7: local epochs", tuple(lines), (REDRAWN,))


def table8(context: Context) -> Plan:
    printed = numbers.TABLE_8.get(context.paper, {})
    lines = []
    for silos in (4, 8, 10):
        second = PartitionRule("label-skew", silos)
        partitions: Sequence[tuple[str, str, PartitionRule]] = (
            (IID, "IID", context.iid(silos)),
            (PAPER_IID, "IID", context.dirichlet(1.0, silos)),
            (f"Non-IID-1 (β={context.settings.beta:g})", "Non-IID-1", context.dirichlet(silos=silos)),
            ("Non-IID-2", "Non-IID-2", second),
            ("Non-IID-2, base 0.25", "", msgspec.structs.replace(second, skew=LabelSkew(base=0.25))),
            ("Non-IID-2, takers 0.25", "", msgspec.structs.replace(second, skew=LabelSkew(takers=0.25))),
        )
        for setting, word, partition in partitions:
            if setting == PAPER_IID and context.settings.beta == 1:
                continue  # it is Non-IID-1
            paper = on_main(context, printed.get((word, silos)))
            lines.append(line(context, f"{silos} silos, {setting}", context.job(partition=partition), paper))
    skew = LabelSkew()
    return Plan(
        "table8",
        "Table 8: number of silos",
        tuple(lines),
        (
            f"Non-IID-2 is scaling approach 2, whose parameters the paper keeps in its supplement; ours: base "
            f"{skew.base}, Beta({skew.alpha:g}, {skew.beta:g}), takers {skew.takers}, sized for "
            f"{skew.most_silos} silos. Its silos keep their size as silos are added, so that four silos train on less.",
            REDRAWN,
        ),
        ("smallest_silo", "training_rows", "unused_rows"),
    )


def table9(context: Context) -> Plan:
    printed = numbers.TABLE_9.get(context.paper, {})
    plain = line(context, numbers.CONCATENATION, context.job(), on_main(context, printed.get(numbers.CONCATENATION)))
    if context.data.main != FLAMEST:
        lacking = tuple(Line(name, status="needs two modalities") for name in (numbers.RGCF_5, numbers.RGCF_50))
        return Plan("table9", "Table 9: RGCF and concatenation", (*lacking, plain))
    lines = []
    for name, epochs in ((numbers.RGCF_5, 5), (numbers.RGCF_50, 50)):
        train = msgspec.structs.replace(context.settings.train, epochs=epochs)
        lines.append(line(context, name, context.job(fusion="rgcf", train=train), printed.get(name)))
    notes: tuple[str, ...] = (
        "Residual gated cross fusion as docs/paper.md (reading 9) has it: the supplement is not in our hands.",
    )
    if context.settings.train.epochs != 5:
        notes += (f"RGCF's 5 and 50 epochs are the table's own; concatenation has {context.settings.train.epochs}.",)
    return Plan("table9", "Table 9: RGCF and concatenation", (*lines, plain), notes, ("parameters",))


def cross_validation(context: Context) -> Plan:
    printed = numbers.TABLE_2.get(context.paper, {}).get("BLIP+Slow, cross-validation")
    rule = context.settings.split
    repeated = rule if rule.kind in ("groups", "paper") else replace_kind(context)
    base = context.job()
    jobs = tuple(
        msgspec.structs.replace(base, seed=fold, split=msgspec.structs.replace(repeated, seed=fold))
        for fold in range(context.settings.scale.folds)
    )
    name = f"{table_name(context.data.main)}, cross-validation"
    return Plan(
        "cross-validation",
        f"Cross-validation: {len(jobs)} random {repeated.ratio} splits",
        (Line(name, jobs, on_main(context, printed)),),
        (
            f"{len(jobs)} splits of {repeated.ratio} cannot be disjoint: they are repeated random splits that share "
            "clips. So they have a mean and a standard deviation, and no interval. ± of the paper is a deviation too.",
        ),
        ("deviation",),
        independent=False,
    )


def replace_kind(context: Context) -> SplitRule:
    """Official splits are three: the folds hold out groups instead."""
    return msgspec.structs.replace(context.settings.split, kind="groups")


def _extractor_lines(context: Context, printed: dict[str, PaperValue], job: Job) -> tuple[Line, ...]:
    lines = []
    for extractor in TABLE_ORDER:
        if extractor == KD:
            lines.append(_rival(context, context.given.kd, KD, printed.get(KD)))
            continue
        name = table_name(extractor)
        lines.append(line(context, name, msgspec.structs.replace(job, extractor=extractor), printed.get(name)))
    if context.data.main not in TABLE_ORDER:
        lines.append(line(context, table_name(context.data.main), job))
    return tuple(lines)


def _rival(context: Context, given: GivenRun | None, name: str, printed: PaperValue | None) -> Line:
    note = rival_note(context, given) if given else ""
    return Line(name, paper=printed, status="" if given else NOT_RUN, note=note, given=given)


def _how(context: Context) -> str:
    settings = context.settings
    return (
        f"{settings.rounds} rounds of {settings.train.epochs} epochs, batch {settings.train.batch_size}, Adam "
        f"{settings.train.learning_rate:g}, weight decay {settings.train.weight_decay:g}, "
        f"{settings.seeds} {'seed' if settings.seeds == 1 else 'seeds'}."
    )
