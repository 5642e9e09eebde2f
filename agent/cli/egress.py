"""The command ``egress``: what has left this silo, for the person responsible for it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, counted, say
from ...base.options import JsonOption
from . import AGENT, ConfigOption, DirOption

if TYPE_CHECKING:
    from ...base.place import Place
    from ..egress.entry import Entry, ReportedResult
    from ..egress.ledger import LedgerContent

INDENT = " " * 22


@command
@AGENT.errors_name_the_place
def egress(
    config: ConfigOption = None,
    folder: DirOption = None,
    state: Annotated[Path | None, typer.Option("--state", help="The state folder, in place of the settings.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the ledger; exit code 65 when it is broken.")
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show what has left this silo for the coordinator, and what its policy refused to send.

    The daemon writes an entry before it sends anything: when, in which round, which tensors, how many bytes, and their
    SHA-256. Nothing is ever removed. Each entry holds the hash of the one before, so that a missing or changed line is
    found; the hash of the last one, printed at the end, can be noted elsewhere and compared later.
    """
    import msgspec

    from ...base.errors import DataError
    from ..egress.ledger import HEAD_FILE, LEDGER_FILE, ledger_error, read_ledger

    home = _state_folder(AGENT.place(config, folder), state)
    if not any(os.path.lexists(home / name) for name in (LEDGER_FILE, HEAD_FILE)):
        raise DataError(  # not "nothing has left": the folder may be another one
            f"{home} holds no egress ledger: no agent has run with this state folder, or the ledger was removed",
            fix="start it once: flamest-agent run --config agent.toml"
            if state is None
            else "flamest-agent egress --config agent.toml finds the folder that the daemon uses",
            code="no_ledger",
        )
    content = read_ledger(home)
    if content.problems and verify:
        raise ledger_error(home, content)
    if not as_json:
        lines = [] if verify else [line for entry in content.entries for line in _lines(entry)]
        for line in (*lines, *_summary(content)):
            say(line)
    updates = list(content.of("update"))
    return {
        "entries": [msgspec.to_builtins(entry) for entry in content.entries],
        "updates": len(updates),
        "bytes": sum(entry.bytes for entry in updates),
        "refused": sum(1 for _ in content.of("refused")),
        "withdrawn": sum(1 for _ in content.of("withdrawn")),
        "overrides": sum(1 for entry in updates if entry.overrides),
        "whole": not content.problems,
        "problems": list(content.problems),
        "cut_short": content.cut_short,
        "head": content.head,
    }


def _state_folder(place: Place, state: Path | None) -> Path:
    if state is not None:
        return state
    from ..settings import load_agent_settings

    return load_agent_settings(place.path).state


def _lines(entry: Entry) -> list[str]:
    """Return an entry in words."""
    where = f"round {entry.round} of {entry.run}: "
    if entry.what == "update":
        lines = [
            f"{where}the classifier's parameters left, {entry.bytes:,} bytes as {entry.codec}",
            f"{len(entry.tensors)} tensors: "
            + ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in entry.tensors),
            f"sent with them: trained on {entry.examples} clips{_withheld(entry)}",
            *map(_result, entry.results),
            *(["the other silos that share may evaluate this model"] if entry.shared else []),
            f"SHA-256 {entry.sha256}",
        ]
        if entry.privacy is not None:
            lines.append(
                f"differential privacy: {entry.privacy.steps} steps, a clip in each with chance "
                f"{entry.privacy.rate:.3g}, noise {entry.privacy.multiplier:g}"
            )
    elif entry.what == "evaluation":
        lines = [f"{where}{counted(entry.models, 'model')} evaluated on the held-out clips, {entry.bytes:,} bytes"]
        lines += [*map(_result, entry.results), f"SHA-256 {entry.sha256}"]
    elif entry.what == "calibration":
        lines = [*_calibration(where, entry), f"SHA-256 {entry.sha256}"]
    elif entry.what == "enrolment":
        lines = [f"{entry.detail}; {entry.bytes} bytes, SHA-256 {entry.sha256}"]
    elif entry.what == "policy":
        lines = ["policy from here on: " + ", ".join(f"{key} = {_toml(value)}" for key, value in entry.policy.items())]
    else:
        lines = [f"{where}NOTHING LEFT, {entry.what} ({entry.code})", entry.detail]
    lines += [f"OVERRIDE: {override}" for override in entry.overrides]
    return [f"{entry.time}  {lines[0]}", *(INDENT + line for line in lines[1:])]


def _calibration(where: str, entry: Entry) -> list[str]:
    """Return everything that was reported for a step of a calibration."""
    found = entry.counted
    if found is None or found.count == 0:
        return [f"{where}no numbers for the model's calibration: it was declined, {entry.bytes:,} bytes"]
    noise = f"noise of {found.noise:.3g} clips on each number" if found.noise else "without noise"
    step = "of confidence" if found.temperature == 0 else f"of scores at temperature {found.temperature:.6g}"
    lines = [f"{where}numbers {step} of {found.count} held-out clips left, {entry.bytes:,} bytes"]
    lines.append(f"they calibrate the final model; {noise}; they count as the evaluations of {found.models} models")
    if found.temperature == 0:
        lines.append(f"confidence less correct predictions at temperature 1: {found.excess} clips")
        lines.append(f"lost from one temperature to the next: {_numbers(found.lost)} clips")
        return lines
    lines.append(f"clips by score, from unsure to sure: {_numbers(found.counts)}")
    return [
        *lines,
        *(
            f"of {clips} clips that the model gives class {k}: {_numbers(counts)}"
            for k, clips, counts in found.by_class
        ),
    ]


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _toml(value: object) -> str:
    """Return a value of the policy as agent.toml has it."""
    return json.dumps(value)


def _result(result: ReportedResult) -> str:
    """Return everything that was reported about one model."""
    from ...fedproto.records import OWN_HEAD

    named = {0: "the run's model", OWN_HEAD: "a head trained on this silo's clips alone"}
    model = named.get(result.subject, f"model {result.subject}")
    classes = ", ".join(f"{correct} of {count} of class {label}" for label, correct, count in result.by_class)
    return (
        f"reported: {model} predicts {result.correct} of {result.count} held-out clips correctly"
        + (f" ({classes})" if classes else "")
        + f", loss {result.loss:.10g}"
    )


def _withheld(entry: Entry) -> str:
    if not entry.withheld:
        return ""
    return {
        "evaluations_spent": "; no evaluation: as many as the policy allows in 24 hours or 30 days had left",
        "splits_spent": "; no evaluation: runs that hold out other clips were evaluated too often lately",
    }.get(entry.withheld, f"; no evaluation: {entry.withheld}")


def _summary(content: LedgerContent) -> list[str]:
    updates = list(content.of("update"))
    evaluations = sum(entry.evaluated_models for entry in content.entries)
    withheld = sum(1 for entry in content.entries if entry.what in ("refused", "withdrawn"))
    entries = "1 entry" if len(content.entries) == 1 else f"{len(content.entries):,} entries"
    refused = f"{withheld:,} {'was' if withheld == 1 else 'were'} refused or withdrawn"
    megabytes = sum(entry.bytes for entry in updates) / 1e6
    lines = [
        f"{entries}: {counted(len(updates), 'update')} of {megabytes:.2f} MB in all may have left, with the "
        f"evaluations of {counted(evaluations, 'model')}; {refused}"
    ]
    if content.cut_short:
        lines.append(f"{content.cut_short} lines were cut short by a crash or a full disk: nothing was sent for them")
    lines += [f"BROKEN: {problem}" for problem in content.problems]
    if not content.problems:
        lines.append(f"the ledger is intact; its last entry has the hash {content.head}")
    return lines
