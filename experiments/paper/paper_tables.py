"""The tables of the paper, 2 to 9, its cross-validation, and the options beyond it, as specifications."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from ...fedproto.records import Strategy
from ..partition import LabelSkew
from ..strategy_names import strategy_title
from . import printed_values
from .features import FLAMEST, READY, VARIANTS, table_name
from .inputs import ExperimentInputs
from .jobs import Job, PartitionRule
from .printed_values import ACTIONCLIP
from .splits import SplitRule
from .table_specs import RowSpec, TableSpec, external_row, extractor_rows, on_main, row_spec, seeded

MU_GRID, MU = (0.001, 0.01, 0.1), 0.01
ALPHA_GRID, ALPHA = (0.001, 0.01, 0.1), 0.01
MOMENTUM, DECAY, AVERAGED = 0.5, 0.95, 5  # options beyond the paper
REDRAWN = (
    "A Dirichlet split is drawn again until no silo has less than an eighth of its even share of the clips "
    "(and at least 2)."
)
IID, PAPER_IID = "IID", "Dirichlet β=1 (the paper's IID)"


def settings_of(inputs: ExperimentInputs) -> dict[str, PartitionRule]:
    """The splits behind the paper's "IID" and "Non-IID": three, or two with β = 1, the paper's IID."""
    skewed = {f"Non-IID (β={inputs.settings.beta:g})": inputs.dirichlet()}
    paper = {} if inputs.settings.beta == 1 else {PAPER_IID: inputs.dirichlet(1.0)}
    return {IID: inputs.iid(), **paper, **skewed}


def table2(inputs: ExperimentInputs) -> TableSpec:
    """Table 2: every extractor, federated."""
    return TableSpec(
        "table2",
        f"Table 2: extractors, federated over {inputs.settings.silos} silos, IID",
        extractor_rows(inputs, printed_values.TABLE_2.get(inputs.paper, {}), inputs.job()),
        (
            _training_note(inputs),
            "Slow (uniform frames) is not in the paper: 8 evenly spread frames instead of k-means keyframes.",
        ),
    )


def central_job(inputs: ExperimentInputs, extractor: str = "") -> Job:
    """One silo with all clips; the paper's 80 epochs in passes of the local epochs, Adam reset in each."""
    passes = math.ceil(inputs.settings.scale.central_epochs / inputs.settings.train.epochs)
    return inputs.job(extractor, partition=inputs.iid(1), rounds=passes)


def table3(inputs: ExperimentInputs) -> TableSpec:
    """Table 3: every extractor, centralised."""
    printed = printed_values.TABLE_3.get(inputs.paper, {})
    job = central_job(inputs)
    rows = extractor_rows(inputs, printed, job)
    actionclip = external_row(inputs, inputs.external.actionclip, ACTIONCLIP, printed.get(ACTIONCLIP))
    return TableSpec(
        "table3",
        "Table 3: extractors, centralised",
        (*rows[:-1], actionclip, rows[-1]),
        (
            f"{job.rounds * job.train.epochs} epochs on all training clips, measured every {job.train.epochs}; Adam's "
            "moments are reset after each measurement, as in every round of a silo.",
        ),
    )


def table4(inputs: ExperimentInputs) -> TableSpec:
    """Table 4: ActionCLIP and FLAMeST, centralised: accuracy and cost."""
    printed = printed_values.TABLE_4.get(inputs.paper, {})
    cost = printed.get(printed_values.FLAMEST)
    timed = msgspec.structs.replace(central_job(inputs), timed=True)
    ours = row_spec(inputs, table_name(inputs.data.main), timed, on_main(inputs, cost.accuracy if cost else None))
    theirs = printed.get(ACTIONCLIP)
    return TableSpec(
        "table4",
        "Table 4: ActionCLIP and FLAMeST, centralised: accuracy, seconds, trainable parameters",
        (external_row(inputs, inputs.external.actionclip, ACTIONCLIP, theirs.accuracy if theirs else None), ours),
        (
            "Seconds of training and testing the classifier on extracted features, on one core of this machine (the "
            "paper: an A100). ActionCLIP's are of its own training on frames.",
        ),
        ("train_s", "test_s", "parameters"),
    )


def _printed_setting(name: str) -> str:
    """The paper's word for a setting of ours."""
    return "Non-IID" if name.startswith("Non-IID") else "IID"


def table5(inputs: ExperimentInputs) -> TableSpec:
    """Table 5: FedAvg, FedProx and FedDyn, IID and Non-IID."""
    printed = printed_values.TABLE_5.get(inputs.paper, {})
    printed_for = [Strategy(), Strategy("fedprox", mu=MU), Strategy("feddyn", alpha=ALPHA)]
    others = [Strategy("fedprox", mu=mu) for mu in MU_GRID if mu != MU]
    others += [Strategy("feddyn", alpha=alpha) for alpha in ALPHA_GRID if alpha != ALPHA]
    chosen = inputs.settings.strategy
    methods = [*printed_for, *others] if chosen is None else [chosen]
    rows = []
    for strategy in methods:
        for setting, partition in settings_of(inputs).items():
            title = strategy_title(strategy)
            paper = printed.get((title.split()[0], _printed_setting(setting))) if strategy in printed_for else None
            job = inputs.job(partition=partition, strategy=strategy)
            rows.append(row_spec(inputs, f"{title}, {setting}", job, on_main(inputs, paper)))
    return TableSpec(
        "table5",
        f"Table 5: FedAvg, FedProx and FedDyn, {inputs.settings.silos} silos",
        tuple(rows),
        (
            *(
                (
                    f"mu = {MU} and alpha = {ALPHA} were fixed beforehand; the rest of the grids ({MU_GRID} and "
                    f"{ALPHA_GRID}) is below them, none was chosen by its test accuracy. The paper gives neither.",
                )
                if chosen is None
                else ()
            ),
            REDRAWN,
        ),
        ("smallest_silo",),
    )


def grid(inputs: ExperimentInputs) -> TableSpec:
    """One row of the main extractor on Dirichlet silos; the commands' lists make a row of every combination."""
    name = table_name(inputs.data.main)
    row = row_spec(inputs, name, inputs.job(partition=inputs.dirichlet()))
    title = f"Grid: {name} on Dirichlet silos"
    return TableSpec("grid", title, (row,), (_training_note(inputs), REDRAWN), ("smallest_silo",))


def table6(inputs: ExperimentInputs) -> TableSpec:
    """Table 6: classifiers of other hidden layers."""
    printed = printed_values.TABLE_6 if inputs.paper == printed_values.UCF101 else {}
    rows = []
    for hidden in printed_values.TABLE_6:
        train, test = printed.get(hidden, (None, None))
        note = f"the paper's training accuracy: {train}" if train and inputs.data.main == FLAMEST else ""
        rows.append(row_spec(inputs, str(list(hidden)), inputs.job(hidden=hidden), on_main(inputs, test), note))
    return TableSpec("table6", "Table 6: five classifiers", tuple(rows), columns=("train_accuracy", "parameters"))


def table7(inputs: ExperimentInputs) -> TableSpec:
    """Table 7: local epochs per round."""
    printed = printed_values.TABLE_7.get(inputs.paper, {})
    rows = []
    for epochs in (5, 10, 15):
        train = msgspec.structs.replace(inputs.settings.train, epochs=epochs)
        for setting, partition in settings_of(inputs).items():
            paper = on_main(inputs, printed.get((epochs, _printed_setting(setting))))
            job = inputs.job(partition=partition, train=train)
            rows.append(row_spec(inputs, f"{epochs} epochs, {setting}", job, paper))
    return TableSpec("table7", "Table 7: local epochs", tuple(rows), (REDRAWN,))


def table8(inputs: ExperimentInputs) -> TableSpec:
    """Table 8: number of silos, under each kind of split."""
    printed = printed_values.TABLE_8.get(inputs.paper, {})
    rows = []
    for silos in (4, 8, 10):
        second = PartitionRule("label-skew", silos)
        partitions: Sequence[tuple[str, str, PartitionRule]] = (
            (IID, "IID", inputs.iid(silos)),
            (PAPER_IID, "IID", inputs.dirichlet(1.0, silos)),
            (f"Non-IID-1 (β={inputs.settings.beta:g})", "Non-IID-1", inputs.dirichlet(silos=silos)),
            ("Non-IID-2", "Non-IID-2", second),
            ("Non-IID-2, base 0.25", "", msgspec.structs.replace(second, skew=LabelSkew(base=0.25))),
            ("Non-IID-2, takers 0.25", "", msgspec.structs.replace(second, skew=LabelSkew(takers=0.25))),
        )
        for setting, word, partition in partitions:
            if setting == PAPER_IID and inputs.settings.beta == 1:
                continue  # it is Non-IID-1
            paper = on_main(inputs, printed.get((word, silos)))
            rows.append(row_spec(inputs, f"{silos} silos, {setting}", inputs.job(partition=partition), paper))
    skew = LabelSkew()
    return TableSpec(
        "table8",
        "Table 8: number of silos",
        tuple(rows),
        (
            f"Non-IID-2 is scaling approach 2, whose parameters the paper keeps in its supplement; ours: base "
            f"{skew.base}, Beta({skew.alpha:g}, {skew.beta:g}), takers {skew.takers}, sized for "
            f"{skew.most_silos} silos. Its silos keep their size as silos are added, so that four silos train on less.",
            REDRAWN,
        ),
        ("smallest_silo", "training_rows", "unused_rows"),
    )


def table9(inputs: ExperimentInputs) -> TableSpec:
    """Table 9: residual gated cross fusion and concatenation."""
    printed = printed_values.TABLE_9.get(inputs.paper, {})
    plain = row_spec(
        inputs,
        printed_values.CONCATENATION,
        inputs.job(),
        on_main(inputs, printed.get(printed_values.CONCATENATION)),
    )
    if inputs.data.main != FLAMEST:
        missing = tuple(
            RowSpec(name, status="needs two modalities") for name in (printed_values.RGCF_5, printed_values.RGCF_50)
        )
        return TableSpec("table9", "Table 9: RGCF and concatenation", (*missing, plain))
    rows = []
    for name, epochs in ((printed_values.RGCF_5, 5), (printed_values.RGCF_50, 50)):
        train = msgspec.structs.replace(inputs.settings.train, epochs=epochs)
        rows.append(row_spec(inputs, name, inputs.job(fusion="rgcf", train=train), printed.get(name)))
    notes: tuple[str, ...] = (
        "Residual gated cross fusion as docs/guides/experiments.md reads it: we do not have the supplement.",
    )
    if inputs.settings.train.epochs != 5:
        notes += (f"RGCF's 5 and 50 epochs are set by the table; concatenation has {inputs.settings.train.epochs}.",)
    return TableSpec("table9", "Table 9: RGCF and concatenation", (*rows, plain), notes, ("parameters",))


def cross_validation(inputs: ExperimentInputs) -> TableSpec:
    """Cross-validation on repeated random splits."""
    printed = printed_values.TABLE_2.get(inputs.paper, {}).get("BLIP+Slow, cross-validation")
    rule = inputs.settings.split
    repeated = rule if rule.kind in ("groups", "paper") else _hold_out_groups(rule)
    base = inputs.job()
    jobs = tuple(
        msgspec.structs.replace(base, seed=fold, split=msgspec.structs.replace(repeated, seed=fold))
        for fold in range(inputs.settings.scale.folds)
    )
    name = f"{table_name(inputs.data.main)}, cross-validation"
    return TableSpec(
        "cross-validation",
        f"Cross-validation: {len(jobs)} random {repeated.ratio} splits",
        (RowSpec(name, jobs, on_main(inputs, printed)),),
        (
            f"{len(jobs)} splits of {repeated.ratio} cannot be disjoint: they are repeated random splits that share "
            "clips. They have a mean and a standard deviation, but no interval. The paper's ± is a standard deviation.",
        ),
        ("deviation",),
        independent=False,
    )


def _hold_out_groups(rule: SplitRule) -> SplitRule:
    """The same rule by whole groups: there are only three official splits, too few for the folds."""
    return msgspec.structs.replace(rule, kind="groups")


def _training_note(inputs: ExperimentInputs) -> str:
    settings = inputs.settings
    return (
        f"{settings.rounds} rounds of {settings.train.epochs} epochs, batch {settings.train.batch_size}, Adam "
        f"{settings.train.learning_rate:g}, weight decay {settings.train.weight_decay:g}, "
        f"{settings.seeds} {'seed' if settings.seeds == 1 else 'seeds'}."
    )


def beyond(inputs: ExperimentInputs) -> TableSpec:
    """Options beyond the paper on IID and on Non-IID silos, each against the baseline of the same seed, in points."""
    rows: list[RowSpec] = []
    for setting, partition in settings_of(inputs).items():
        if setting == PAPER_IID:
            continue
        baseline = inputs.job(partition=partition)
        base = row_spec(inputs, f"baseline ({table_name(inputs.data.main)}), {setting}", baseline)
        rows.append(base)
        rows += [_compared_row(inputs, f"{name}, {setting}", job, base) for name, job in _options(inputs, baseline)]
    return TableSpec(
        "beyond",
        "Beyond the paper: options and their effect on the last round's accuracy",
        tuple(rows),
        (
            "The difference is to the baseline of the same split, paired by seed, with its 95 % interval: an option "
            "helps where the whole interval is above 0. Of several options, one interval in twenty misses 0 by "
            "chance.",
            f"Server momentum {MOMENTUM}, rate times {DECAY} each round, mean of the last {AVERAGED} rounds' models. "
            "Standardisation uses mean and standard deviation of each row's own blocks, not of a feature over clips.",
            REDRAWN,
        ),
    )


def _options(inputs: ExperimentInputs, base: Job) -> list[tuple[str, Job]]:
    change = msgspec.structs.replace
    train = base.train
    options = [
        ("per-modality standardisation", change(base, standardise=True)),
        ("class-balanced loss", change(base, train=change(train, class_balanced=True))),
        ("server momentum", change(base, strategy=Strategy(server_momentum=MOMENTUM))),
        ("learning-rate decay", change(base, train=change(train, learning_rate_decay=DECAY))),
        ("average of the last rounds", change(base, strategy=Strategy(average_last=min(AVERAGED, base.rounds)))),
    ]
    if inputs.data.main == FLAMEST:
        variants = [(f"{VARIANTS[name]} + Slow", f"{name}+slow") for name in VARIANTS]
        stacked = [("BLIP text and cross embeddings stacked", "blip-text+blip+slow")]
        options += [(name, change(base, extractor=extractor)) for name, extractor in stacked + variants]
    return options


def _compared_row(inputs: ExperimentInputs, name: str, job: Job, base: RowSpec) -> RowSpec:
    if inputs.data.state(job.extractor) != READY:
        return RowSpec(name, status=inputs.data.state(job.extractor))
    return RowSpec(name, seeded(inputs, job), against=base.jobs)
