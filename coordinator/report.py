"""`status`, `history` and `model`: what the state folder holds, as objects for --json and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.files import write_atomic
from ..fedproto.head import params_sha256
from ..fedproto.modelfile import decode_model
from ..fedproto.tls import read_facts, read_file
from .authority import enrolled, read_silos
from .health import FINE, read_health
from .history import History, RoundRow, SiloRow, is_served, served_address
from .settings import CoordinatorSettings


def status_of(settings: CoordinatorSettings) -> dict[str, Any]:
    """Keys: running, address, run, phase, round, closed, of, model_sha256, silos[], certificate_days_left,
    degraded, degraded_since, degraded_detail.
    """
    with History.open(settings.server.state, settings.run.name) as history:
        rows, silos = history.rounds(), history.silos()
    closed = [row for row in rows if row.status == "closed"]
    current = rows[-1] if rows and rows[-1].status == "open" else None
    facts = read_facts(read_file(settings.server.certificate), whose=str(settings.server.certificate))
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
        "silos": [_silo(name, {row.silo: row for row in silos}) for name in allowed],
        "certificate_days_left": round(facts.days_left, 1),
        "degraded": health.degraded or None,
        "degraded_since": health.since or None,
        "degraded_detail": health.detail or None,
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
    for silo in now["silos"]:
        last = (
            f"last update {silo['last_update']} in round {silo['last_round']}" if silo["updates"] else "no update yet"
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
    """One object per round, keys as in RoundRow, with loss, correct, count and accuracy of the incoming model."""
    with History.open(settings.server.state, settings.run.name) as history:
        return [_round(row) for row in history.rounds()]


def _round(row: RoundRow) -> dict[str, Any]:
    told = row.evaluation
    return {
        **{name: value for name, value in dataclasses.asdict(row).items() if name != "evaluation"},
        "loss": told.loss if told else None,
        "correct": told.correct if told else None,
        "count": told.count if told else None,
        "accuracy": told.correct / told.count if told else None,
    }


def history_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """``history_of`` as a table."""
    head = f"{'round':>5} {'status':9} {'accepted':>8} {'refused':>7} {'examples':>8} {'loss':>8} {'accuracy':>8}"
    lines = [f"{head} {'MB in':>8} {'MB out':>8} {'seconds':>8} model"]
    for row in rows:
        loss = f"{row['loss']:8.4f}" if row["loss"] is not None else f"{'-':>8}"
        accuracy = f"{row['accuracy']:8.3f}" if row["accuracy"] is not None else f"{'-':>8}"
        seconds = f"{row['seconds']:8.1f}" if row["seconds"] is not None else f"{'-':>8}"
        lines.append(
            f"{row['round']:5} {row['status']:9} {row['accepted']:8} {row['refused']:7} {row['examples']:8} {loss} "
            f"{accuracy} {row['received_bytes'] / 1e6:8.2f} {row['sent_bytes'] / 1e6:8.2f} {seconds} "
            f"{(row['model_sha256'] or '-')[:12]}"
        )
    return lines


def take_model(settings: CoordinatorSettings, out: Path, round_number: int | None) -> dict[str, Any]:
    """Copy a round's model to ``out``; it is read and checked first. Raises DataError, StorageError."""
    with History.open(settings.server.state, settings.run.name) as history:
        path, number = history.model_file(round_number)
    content = path.read_bytes()
    found = decode_model(content, whose=str(path))
    write_atomic(out, content)
    return {
        "model": str(out),
        "run": found.run,
        "round": number,
        "sha256": params_sha256(found.params),
        "parameters": found.head.parameters,
        "labels": len(found.labels),
        "fingerprint": found.fingerprint,
        "bytes": len(content),
    }
