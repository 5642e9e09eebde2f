"""The settings file ``coordinator.toml``: every key, its default and its check."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..base.errors import DataError, SettingsError
from ..base.log import LogSettings
from ..base.settings import load_settings
from ..fedproto.bounds import MAX_DEADLINE_S
from ..fedproto.codecs import Codec
from ..fedproto.head import HeadSpec
from ..fedproto.messages import MAX_EXAMPLES
from ..fedproto.recipes import Recipe, completed
from ..fedproto.records import RunSettings, Strategy, TrainSettings, unprintable
from ..fedproto.tls import TlsFiles
from .strategies.composition import strategy_problems

RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strict and immutable: an unknown key is an error."""


class ServerSettings(_Record, frozen=True):
    """[server]: its address, its identity, and the folder of its durable state."""

    ca: Path  # PEM, the authority that signs the silos' certificates; made by init
    certificate: Path  # PEM, the server's own; made by init
    key: Path  # PEM, of that certificate; only its owner may read it
    silos: Path  # the allow-list, written by `silo add` and `silo revoke`
    state: Path  # folder of everything durable: rounds, updates, models
    listen: str = "0.0.0.0:7443"  # address:port; port 0 picks a free one and logs it
    keep_models: int = 0  # models of this many last rounds stay on disk; 0 keeps all

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(self.ca, self.certificate, self.key)


class HeadTable(_Record, frozen=True):
    """[run.head]: the kind of head; its widths are run.inputs and run.hidden."""

    kind: Literal["mlp", "rgcf"] = "mlp"  # a perceptron, or the gated fusion of two modalities before it
    blocks: tuple[int, ...] = ()  # widths of the modalities in a row, adding up to run.inputs
    standardise: bool = False  # every block of every row to mean 0 and standard deviation 1
    common: int = 256  # rgcf: width that both modalities are projected to
    start: Literal["uniform", "zero"] = "uniform"  # initial weights; zero: only without hidden layers


class RunTable(_Record, frozen=True):
    """[run]: the run that the silos take part in. The same name always means the same settings.

    The defaults are the paper's; ``load_coordinator_settings`` fills in the recipe's first.
    """

    name: str  # 1 to 40 of a-z, 0-9, ".", "_" and "-"; other settings need another name
    labels: tuple[str, ...]  # the classes in their order, k is labels[k]; silos leave clips with other labels out
    fingerprint: str  # of the bundle whose features are trained on, as flamest-export inspect prints it
    recipe: Recipe = "default"  # fills in head, strategy and train where the file does not set them; or "paper"
    inputs: int = 2816  # values of a clip's embedding
    hidden: tuple[int, ...] = (512, 256)  # widths of the head's hidden layers
    rounds: int = 80  # rounds that must close; abandoned ones do not count
    min_silos: int = 2  # fewer updates at the deadline: the round is abandoned, the model stays
    wanted: int | None = None  # updates that close a round early; not set: the silos enrolled at its opening
    wanted_share: float | None = None  # instead of wanted: this share of the silos enrolled at its opening, rounded up
    deadline_s: float = 600.0  # seconds from the first silo that gets the round
    seed: int = 0  # of the initial model and the silos' shuffles
    head: HeadTable = HeadTable()
    strategy: Strategy = Strategy()
    train: TrainSettings = TrainSettings()
    codec: Codec = "fp32"  # of models on their way; the coarsest that a silo may send
    final_evaluation: Literal["none", "model", "sites"] = "none"  # models that silos evaluate after the last round
    gains: bool = False  # silos that agree then report too how a head of their own, trained alone, does
    calibrate: bool = False  # after the last round silos report the counts that calibrate the final model

    def head_spec(self) -> HeadSpec:
        """Return the head that is trained. Raises DataError (``bad_head``) for options that do not fit each other."""
        head = self.head
        return HeadSpec(
            inputs=self.inputs,
            outputs=len(self.labels),
            hidden=self.hidden,
            kind=head.kind,
            blocks=head.blocks,
            standardise=head.standardise,
            common=head.common,
            start=head.start,
        )


class CheckSettings(_Record, frozen=True):
    """[checks]: bounds that an update must pass before it counts. Not sent to the silos; may change between starts."""

    # Longest update, in times the median silo's farthest of the last rounds; 0: no bound, not even Adam's.
    norm_times: float = 4.0
    examples_times: float = 2.0  # most examples that an update counts for, in times the median claim; 0: as it claims
    max_examples: int = 1_000_000  # an update that claims more is refused
    quarantine_after: int = 3  # a silo is put aside after so many refusals of a kind that no honest silo gets; 0: never


class CoordinatorSettings(_Record, frozen=True):
    """The settings file. Relative paths are relative to its folder."""

    server: ServerSettings
    run: RunTable
    checks: CheckSettings = CheckSettings()
    log: LogSettings = LogSettings()

    def run_settings(self) -> RunSettings:
        """Return the settings that are sent to the silos."""
        run = self.run
        return RunSettings(
            run=run.name,
            labels=run.labels,
            head=run.head_spec(),
            rounds=run.rounds,
            min_silos=run.min_silos,
            deadline_s=run.deadline_s,
            fingerprint=run.fingerprint,
            seed=run.seed,
            strategy=run.strategy,
            train=run.train,
            codec=run.codec,
            final_evaluation=run.final_evaluation,
            gains=run.gains,
            calibrate=run.calibrate,
        )


def load_coordinator_settings(path: Path) -> CoordinatorSettings:
    """Read and check ``coordinator.toml``; SettingsError names file, key and what was expected."""
    start = "flamest-coordinator init DIR makes a folder with a first one"
    settings = load_settings(path, CoordinatorSettings, start=start, complete=_with_recipe)
    if settings.run.recipe == "default":
        settings = _as_begun(settings, path)
    run = settings.run
    problems = [*_server_problems(settings.server), *_run_problems(run)]
    problems += [f"run.train.{problem}" for problem in run.train.problems()]
    problems += [f"run.strategy.{problem}" for problem in strategy_problems(run.strategy)]
    problems += _check_problems(settings.checks)
    if not problems:  # nor may it ask for what no silo accepts
        problems += [f"run.{problem}" for problem in settings.run_settings().problems()]
    if problems:
        empty = not run.labels or not run.fingerprint
        fix = f"edit {path}" + (": fill in the lines marked TO FILL IN" if empty else "")
        raise SettingsError(f"{path}: " + "; ".join(problems), fix=fix)
    return _resolve_paths(settings, Path(path).resolve().parent)


def _with_recipe(file: dict[str, Any], unnamed: Recipe | None = None) -> dict[str, Any]:
    """Return the file's tables, [run] with what its recipe fills in; ``unnamed``: the recipe where it names none."""
    run = file.get("run")
    if not isinstance(run, dict):
        return file
    return {**file, "run": completed({"recipe": unnamed, **run} if unnamed else run)}


def _as_begun(settings: CoordinatorSettings, path: Path) -> CoordinatorSettings:
    """Return the settings by the paper's recipe where the run began with it: before a settings file named a recipe."""
    from .storage.begun import begun_settings

    begun = begun_settings(Path(path).resolve().parent / settings.server.state, settings.run.name)
    if begun is None:
        return settings
    paper = load_settings(path, CoordinatorSettings, complete=functools.partial(_with_recipe, unnamed="paper"))
    try:
        return paper if paper.run_settings().encode() == begun else settings
    except DataError:  # a head that does not fit is reported later
        return settings


def split_listen(listen: str) -> tuple[str, int]:
    """Split ``address:port`` or ``[v6]:port``; ValueError when it is neither."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(listen)
    return host, int(port)


def _server_problems(server: ServerSettings) -> list[str]:
    problems = []
    try:
        split_listen(server.listen)
    except ValueError:
        problems.append(f"server.listen '{server.listen}': expected address:port, like 0.0.0.0:7443")
    if server.keep_models < 0:
        problems.append("server.keep_models: expected 0 (all) or more")
    return problems


def _run_problems(run: RunTable) -> list[str]:
    problems = []
    if not RUN_NAME.fullmatch(run.name):
        problems.append("run.name: expected 1 to 40 of a-z, 0-9, '.', '_' and '-'")
    if len(run.labels) < 2 or not all(run.labels):
        problems.append("run.labels: expected 2 or more different class names")
    if twice := [label for label, times in Counter(run.labels).items() if times > 1]:
        problems.append(f"run.labels: '{twice[0]}' is there twice, expected different class names")
    if not run.fingerprint or run.fingerprint.strip() != run.fingerprint:
        problems.append("run.fingerprint: expected the bundle's, as `flamest-export inspect BUNDLE` prints it")
    for key, names in (("labels", run.labels), ("fingerprint", (run.fingerprint,))):
        if strange := unprintable(*names):
            problems.append(f"run.{key}: expected printable characters, not {', '.join(strange[:3])}")
    problems += _whole_numbers("run", [("inputs", run.inputs), ("rounds", run.rounds), ("min_silos", run.min_silos)])
    if any(width < 1 for width in run.hidden):
        problems.append("run.hidden: expected widths of 1 or more")
    elif run.labels and (head_problem := _head_problem(run)):
        problems.append(head_problem)
    if run.wanted is not None and run.wanted < run.min_silos:
        problems.append(f"run.wanted: expected run.min_silos ({run.min_silos}) or more")
    if run.wanted_share is not None and run.wanted is not None:
        problems.append("run.wanted, run.wanted_share: expected one of them")
    if run.wanted_share is not None and not 0 < run.wanted_share <= 1:
        problems.append("run.wanted_share: expected more than 0 and at most 1")
    if not 0 < run.deadline_s <= MAX_DEADLINE_S:
        problems.append(f"run.deadline_s: expected more than 0 and at most {MAX_DEADLINE_S:.0f} seconds")
    if run.seed < 0:
        problems.append("run.seed: expected 0 or more")
    return problems


def _check_problems(checks: CheckSettings) -> list[str]:
    problems = []
    if checks.norm_times != 0 and not (1 <= checks.norm_times < math.inf):
        problems.append("checks.norm_times: expected 1 or more, or 0 for no bound")
    if checks.examples_times != 0 and not (1 <= checks.examples_times < math.inf):
        problems.append("checks.examples_times: expected 1 or more, or 0 for no limit")
    if not 1 <= checks.max_examples < MAX_EXAMPLES:
        problems.append(f"checks.max_examples: expected 1 to {MAX_EXAMPLES - 1}")
    if checks.quarantine_after < 0:
        problems.append("checks.quarantine_after: expected 0 (never) or more")
    return problems


def _whole_numbers(section: str, values: Sequence[tuple[str, int]]) -> list[str]:
    return [f"{section}.{name}: expected 1 or more" for name, value in values if value < 1]


def _head_problem(run: RunTable) -> str:
    try:
        run.head_spec()
    except DataError as error:
        return f"run.head: {error.message}"
    return ""


def _resolve_paths(settings: CoordinatorSettings, folder: Path) -> CoordinatorSettings:
    """Resolve every relative path against the settings file's folder."""
    server = settings.server
    anchored = msgspec.structs.replace(
        server,
        ca=folder / server.ca,
        certificate=folder / server.certificate,
        key=folder / server.key,
        silos=folder / server.silos,
        state=folder / server.state,
    )
    return msgspec.structs.replace(settings, server=anchored)
