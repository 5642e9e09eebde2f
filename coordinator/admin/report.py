"""What a run has cost in bytes when it was nearly as good as it got: to compare codecs by.

`status`, `history` and `model`: what the state folder holds, as objects for --json and as text.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ...base.errors import DataError
from ...fedproto.head import params_sha256
from ...fedproto.model_file import read_model, write_model
from ...fedproto.records import Evaluation
from ...fedproto.tls import certificate_info, read_file
from ..serving.health import FINE, read_health
from ..settings import CoordinatorSettings
from ..storage.evaluations import Measured, best_of
from .authority import enrolled, read_silos
from .history import History, RoundRow, SiloRow, UpdateRow, is_served, served_address

SHARE = 0.95


@dataclass(frozen=True)
class Reached:
    """When a model first had ``SHARE`` of the last one's accuracy, and what the silos of a codec had moved by then."""

    codec: str  # of their updates
    round: int
    final_accuracy: float
    silos: int
    bytes_per_silo: float  # mean over them: models and updates, both directions, of all rounds up to this one


def bytes_to_share(rounds: Sequence[RoundRow], measured: Sequence[Measured]) -> list[Reached]:
    """One row for each codec that silos used, by name; empty unless two models were measured.

    A silo that changed its codec counts for the last one. Rounds that were abandoned cost bytes too.
    """
    accuracies = [(one.round, told.correct / told.count) for one in measured if (told := one.all) is not None]
    if len(accuracies) < 2:
        return []
    final = accuracies[-1][1]
    reached = next(number for number, accuracy in accuracies if accuracy >= SHARE * final)
    spent: dict[str, int] = defaultdict(int)
    codec: dict[str, str] = {}
    for row in rounds:
        for one in row.updates:
            codec[one.silo] = one.codec or "unknown"
            if row.round <= reached:
                spent[one.silo] += one.received_bytes + (one.sent_bytes or 0)
    return [
        Reached(name, reached, final, len(silos), fmean(spent[silo] for silo in silos))
        for name in sorted(set(codec.values()))
        if (silos := [silo for silo, used in codec.items() if used == name])
    ]


def status_of(settings: CoordinatorSettings) -> dict[str, Any]:
    """Keys: running, address, run, phase, round, closed, of, model_sha256, last, best (a model's round and accuracy),
    received_bytes, sent_bytes, silos[], certificate_days_left, degraded, degraded_since, degraded_detail.
    """
    with History.open(settings.server.state, settings.run.name) as history:
        rows, silos, measured = history.rounds(), history.silos(), history.measured()
    closed = [row for row in rows if row.status == "closed"]
    current = rows[-1] if rows and rows[-1].status == "open" else None
    facts = certificate_info(read_file(settings.server.certificate), whose=str(settings.server.certificate))
    health = read_health(settings.server.state) if is_served(settings.server.state) else FINE
    allowed = enrolled(read_silos(settings.server.silos))
    return {
        "running": is_served(settings.server.state),
        "address": served_address(settings.server.state),
        "run": settings.run.name,
        "phase": "open" if current else "finished" if closed else "not begun",
        "round": rows[-1].round if rows else 0,
        "reported": current.accepted if current else 0,
        "wanted": current.wanted if current else 0,
        "closed": len(closed),
        "of": settings.run.rounds,
        "abandoned": sum(row.status == "abandoned" for row in rows),
        "model_sha256": closed[-1].model_sha256 if closed else None,
        **_models(measured, closed),
        "received_bytes": sum(row.received_bytes for row in rows),
        "sent_bytes": sum(row.sent_bytes for row in rows),
        "silos": [_silo(name, {row.silo: row for row in silos}) for name in allowed],
        "certificate_days_left": round(facts.days_left, 1),
        "degraded": health.degraded or None,
        "degraded_since": health.since or None,
        "degraded_detail": health.detail or None,
    }


def _models(measured: Sequence[Measured], closed: Sequence[RoundRow]) -> dict[str, Any]:
    """The last model and the best one; accuracy is None for a model that no one measured (yet)."""
    last = closed[-1].round if closed else 0
    told = next((one.all for one in measured if one.round == last), None)
    best = best_of(measured)
    return {
        "last": {"round": last, "accuracy": told.correct / told.count if told else None},
        "best": {"round": best[0], "accuracy": best[1].correct / best[1].count} if best else None,
    }


def _silo(name: str, known: Mapping[str, SiloRow]) -> dict[str, Any]:
    return dataclasses.asdict(known.get(name, SiloRow(name, 0, None, None, 0, None)))


def status_lines(now: Mapping[str, Any]) -> list[str]:
    """``status_of`` for people."""
    where = f"running at {now['address']}" if now["running"] else "NOT RUNNING"
    lines = [f"{where}; run '{now['run']}': {now['closed']} of {now['of']} rounds closed, {now['abandoned']} abandoned"]
    if now["degraded"]:
        lines.append(f"DEGRADED {now['degraded']} since {now['degraded_since']}: {now['degraded_detail']}")
    if now["phase"] == "open":
        lines.append(f"round {now['round']} is open: {now['reported']} of {now['wanted']} silos have reported")
    else:
        lines.append(f"the run is {now['phase']}")
    if now["best"]:
        lines.append(f"best model so far: round {now['best']['round']}, accuracy {now['best']['accuracy']:.3f}")
    lines.append(
        f"moved: {now['received_bytes'] / 1e6:.2f} MB from the silos, {now['sent_bytes'] / 1e6:.2f} MB to them"
    )
    for silo in now["silos"]:
        last = (
            f"last update {silo['last_update']} in round {silo['last_round']}, {silo['received_bytes'] / 1e6:.2f} MB in"
            if silo["updates"]
            else "no update yet"
        )
        refused = f", {silo['refused']} refused ({silo['last_refusal']})" if silo["refused"] else ""
        lines.append(f"  {silo['silo']:20} {silo['updates']} updates, {last}{refused}")
        if silo["quarantined"]:
            lines.append(
                f"  {'':20} IN QUARANTINE since {silo['quarantined']}: flamest-coordinator silo release {silo['silo']}"
            )
    if not now["silos"]:
        lines.append("  no silo is enrolled: flamest-coordinator silo add NAME --csr NAME.csr")
    if now["certificate_days_left"] < 30:
        lines.append(
            f"the server's certificate ends in {now['certificate_days_left']:.0f} days: flamest-coordinator renew"
        )
    return lines


def history_of(settings: CoordinatorSettings) -> list[dict[str, Any]]:
    """One object per round, keys as in RoundRow, with loss, correct, count and accuracy of the incoming model.

    ``updates`` has the same for each silo, with its codec, what that left out, and its bytes.
    """
    with History.open(settings.server.state, settings.run.name) as history:
        return [_round(row) for row in history.rounds()]


def _round(row: RoundRow) -> dict[str, Any]:
    lost = [one.codec_error for one in row.updates if one.codec_error is not None]
    return {
        **{name: value for name, value in vars(row).items() if name not in ("evaluation", "updates")},
        **told_keys(row.evaluation),
        "codecs": sorted({one.codec for one in row.updates if one.codec is not None}),
        "codec_error": max(lost, default=None),
        "bytes_per_silo": (row.received_bytes + row.sent_bytes) / row.accepted if row.accepted else None,
        "updates": [_update(one) for one in row.updates],
    }


def _update(row: UpdateRow) -> dict[str, Any]:
    return {**{name: value for name, value in vars(row).items() if name != "evaluation"}, **told_keys(row.evaluation)}


def told_keys(told: Evaluation | None) -> dict[str, Any]:
    """loss, correct, count and accuracy; None where nothing was told."""
    return {
        "loss": told.loss if told else None,
        "correct": told.correct if told else None,
        "count": told.count if told else None,
        "accuracy": told.correct / told.count if told else None,
    }


def reached_of(settings: CoordinatorSettings) -> list[dict[str, Any]]:
    """By codec: what a silo moved until a model had 95 % of the last one's accuracy; empty when too little is known."""
    with History.open(settings.server.state, settings.run.name) as history:
        return [vars(one) for one in bytes_to_share(history.rounds(), history.measured())]


def history_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """``history_of`` as a table."""
    head = f"{'round':>5} {'status':9} {'accepted':>8} {'refused':>7} {'examples':>8} {'loss':>8} {'accuracy':>8}"
    lines = [f"{head} {'MB in':>8} {'MB out':>8} {'MB/silo':>8} {'lost':>6} {'seconds':>8} model"]
    for row in rows:
        loss = f"{row['loss']:8.4f}" if row["loss"] is not None else f"{'-':>8}"
        accuracy = f"{row['accuracy']:8.3f}" if row["accuracy"] is not None else f"{'-':>8}"
        seconds = f"{row['seconds']:8.1f}" if row["seconds"] is not None else f"{'-':>8}"
        each = f"{row['bytes_per_silo'] / 1e6:8.2f}" if row["bytes_per_silo"] is not None else f"{'-':>8}"
        lost = f"{row['codec_error']:6.1%}" if row["codec_error"] else f"{'-':>6}"
        moved = f"  the clock moved by {row['clock_moved']:+.0f} s" if row["clock_moved"] else ""
        lines.append(
            f"{row['round']:5} {row['status']:9} {row['accepted']:8} {row['refused']:7} {row['examples']:8} {loss} "
            f"{accuracy} {row['received_bytes'] / 1e6:8.2f} {row['sent_bytes'] / 1e6:8.2f} {each} {lost} {seconds} "
            f"{(row['model_sha256'] or '-')[:12]}{moved}"
        )
    return lines


def reached_lines(reached: Sequence[Mapping[str, Any]]) -> list[str]:
    """``reached_of`` for people."""
    return [
        f"95 % of the last accuracy ({one['final_accuracy']:.3f}) in round {one['round']}: "
        f"{one['bytes_per_silo'] / 1e6:.2f} MB per silo in {one['codec']} ({one['silos']} silos)"
        for one in reached
    ]


def take_model(settings: CoordinatorSettings, out: Path, round_number: int | Literal["best"] | None) -> dict[str, Any]:
    """Copy a round's model to ``out`` (None: the last one); it is read and checked first.

    Raises DataError (``not_measured`` for "best" when no silo told how a model does), StorageError.
    """
    with History.open(settings.server.state, settings.run.name) as history:
        if round_number == "best":
            best = best_of(history.measured())
            if best is None:
                raise DataError(
                    "no silo has told how a model does on its held-out clips, so none is the best",
                    fix="take the last one, without --best; silos decide in [policy] report_evaluation",
                    code="not_measured",
                )
            round_number = best[0]
        path, number = history.model_file(round_number)
    found = read_model(path)
    write_model(out, found)  # what was read and checked; the same model gives the same bytes
    return {
        "model": str(out),
        "run": found.run,
        "round": number,
        "sha256": params_sha256(found.params),
        "parameters": found.head.parameters,
        "labels": len(found.labels),
        "fingerprint": found.fingerprint,
        "bytes": out.stat().st_size,
    }
