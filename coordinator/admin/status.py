"""`status` and `history`: the state of a run, as objects for --json and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ...fedproto.tls import certificate_info, read_file
from ..serving.attendance import Attendance, read_attendance
from ..serving.health import HEALTHY, read_health
from ..settings import CoordinatorSettings
from .authority import enrolled, read_silos
from .calibration import calibration_figures, calibration_line
from .history import History, RoundRow, SiloRow, UpdateRow, evaluation_figures, is_served, loss_text, served_address
from .measured import MISSING, MeasuredModels

AFTER_THE_RUN = ("not-asked", "waiting")  # reasons why a finished run's model has no accuracy, with a way out
DECLINED_LINES = (
    "a silo declines a round that it cannot train, or that its policy forbids: there, flamest-agent status says why",
    "  if all decline: does the run fit their bundle? flamest-coordinator run --check-config --bundle DIR",
)
ROUNDED_LINE = "silos round losses to steps, the coarser the fewer clips they hold out, and add noise ([policy])"
MOST_LOST = 9.999  # of a codec's error, as shown in a table: a silo may claim any


def status_of(settings: CoordinatorSettings) -> dict[str, Any]:
    """Return the state of the run for --json.

    ``last`` and ``best`` are a model's round and accuracy, ``last_missing`` says why the last one has none; bytes are
    of accepted updates and of models, over all silos.
    """
    with History.open(settings.server.state, settings.run.name) as history:
        rows, silos, others = history.rounds(), history.silos(), history.other_runs()
        measured = MeasuredModels.of(history, rows, settings)
        calibration = calibration_figures(history, rows, settings)
    closed = [row for row in rows if row.status == "closed"]
    current = rows[-1] if rows and rows[-1].status == "open" else None
    info = certificate_info(read_file(settings.server.certificate), whose=str(settings.server.certificate))
    health = read_health(settings.server.state) if is_served(settings.server.state) else HEALTHY
    attendance = read_attendance(settings.server.state, settings.run.name)
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
        **_models(measured, closed[-1].round if closed else 0),
        "calibration": calibration,
        "received_bytes": sum(row.received_bytes for row in rows),
        "sent_bytes": sum(row.sent_bytes for row in rows),
        "silos": [_silo(name, {row.silo: row for row in silos}, attendance) for name in allowed],
        "certificate_days_left": round(info.days_left, 1),
        "degraded": health.degraded or None,
        "degraded_since": health.since or None,
        "degraded_detail": health.detail or None,
        "other_runs": others,
    }


def _models(measured: MeasuredModels, last: int) -> dict[str, Any]:
    """Return the last model and the best one; accuracy is None for a model that no silo has evaluated."""
    best = measured.best
    return {
        "last": {"round": last, "accuracy": evaluation_figures(measured.evaluation(last))["accuracy"]},
        "last_missing": measured.missing_text(last) if last else "",
        "best": {"round": best[0], "accuracy": best[1].correct / best[1].count} if best else None,
    }


def _silo(name: str, known: Mapping[str, SiloRow], attendance: Attendance | None) -> dict[str, Any]:
    """Return a silo's totals; ``seen``: it has asked for work since the server's last start (None: not known)."""
    return {
        **dataclasses.asdict(known.get(name, SiloRow(name, 0, None, None, 0, None))),
        "seen": None if attendance is None else name in attendance.seen,
        "declined_round": None if attendance is None else attendance.declined.get(name),
    }


def status_lines(now: Mapping[str, Any]) -> list[str]:
    """Return ``status_of`` as text."""
    where = f"running at {now['address']}" if now["running"] else "NOT RUNNING"
    lines = [f"{where}; run '{now['run']}': {now['closed']} of {now['of']} rounds closed, {now['abandoned']} abandoned"]
    if now["degraded"]:
        lines.append(f"DEGRADED {now['degraded']} since {now['degraded_since']}: {now['degraded_detail']}")
    if now["phase"] == "open":
        lines.append(f"round {now['round']} is open: {now['reported']} of {now['wanted']} silos have reported")
    else:
        lines.append(f"the run is {now['phase']}")
    if now["last"]["accuracy"] is not None:
        lines.append(f"last model: round {now['last']['round']}, accuracy {now['last']['accuracy']:.3f}")
    elif now["last"]["round"]:
        lines.append(f"last model: round {now['last']['round']}, {now['last_missing']}")
    if now["best"]:
        lines.append(f"best model so far: round {now['best']['round']}, accuracy {now['best']['accuracy']:.3f}")
    if now["calibration"]:
        lines.append(calibration_line(now["calibration"]))
    lines.append(
        f"moved: {now['received_bytes'] / 1e6:.2f} MB from the silos, {now['sent_bytes'] / 1e6:.2f} MB to them"
    )
    for silo in now["silos"]:
        last = (
            f"last update {silo['last_update']} in round {silo['last_round']}, {silo['received_bytes'] / 1e6:.2f} MB in"
            if silo["updates"]
            else _without_update(silo)
        )
        if silo["updates"]:
            last += f", {claim_text(silo)}"
            if declines(silo):
                last += f", declined round {silo['declined_round']}"
        refused = f", {silo['refused']} refused ({silo['last_refusal']})" if silo["refused"] else ""
        lines.append(f"  {silo['silo']:20} {silo['updates']} updates, {last}{refused}")
        if silo["quarantined"]:
            lines.append(
                f"  {'':20} IN QUARANTINE since {silo['quarantined']}: flamest-coordinator silo release {silo['silo']}"
            )
    if any(map(declines, now["silos"])):
        lines += DECLINED_LINES
    if not now["silos"]:
        lines.append("  no silo is enrolled: flamest-coordinator silo add NAME --csr NAME.csr")
    if now["other_runs"]:
        lines.append(
            f"other runs here: {', '.join(now['other_runs'])}; flamest-coordinator history --run NAME shows one"
        )
    if now["certificate_days_left"] < 30:
        lines.append(
            f"the server's certificate ends in {now['certificate_days_left']:.0f} days: flamest-coordinator renew"
        )
    return lines


def declines(silo: Mapping[str, Any]) -> bool:
    """True for a silo that declined a round and has not sent an update since."""
    return (silo["declined_round"] or 0) > (silo["last_round"] or 0)


def _without_update(silo: Mapping[str, Any]) -> str:
    """Return what is known of a silo that has sent no update."""
    if silo["declined_round"]:
        return f"no update yet: it declined round {silo['declined_round']}"
    return {None: "no update yet", True: "no update yet: it is connected", False: "not seen since the server's start"}[
        silo["seen"]
    ]


def claim_text(update: Mapping[str, Any]) -> str:
    """Return an update's examples and norm, as claimed and as counted, as text."""
    counted, norm, kept = update["counted"], update["norm"], update["counted_norm"]
    text = f"{update['examples']} examples"
    if counted is not None and counted < update["examples"]:
        text += f" claimed, counted as {counted}"
    if norm is not None:
        text += f", norm {norm:.4g}"
        if kept is not None and kept < norm:
            text += f", counted as {kept:.4g}"
    return text


def is_limited(update: Mapping[str, Any]) -> bool:
    """Return True for an update of a closed round that counted less than it claimed."""
    counted, kept = update["counted"], update["counted_norm"]
    return (counted is not None and counted < update["examples"]) or (kept is not None and kept < update["norm"])


def history_of(settings: CoordinatorSettings) -> list[dict[str, Any]]:
    """Return one object per round, keys as in RoundRow, with loss, correct, count and accuracy of the model it made.

    ``accuracy_missing`` says why a round has none. ``incoming`` has the figures of the model that the round started
    from, as the silos reported them in it. ``updates`` has these for each silo, with its codec, the codec's error, and
    its bytes.
    """
    with History.open(settings.server.state, settings.run.name) as history:
        rows = history.rounds()
        measured = MeasuredModels.of(history, rows, settings)
    return [_round(row, measured) for row in rows]


def _round(row: RoundRow, measured: MeasuredModels) -> dict[str, Any]:
    lost = [update.codec_error for update in row.updates if update.codec_error is not None]
    return {
        **{name: value for name, value in vars(row).items() if name not in ("evaluation", "updates")},
        **evaluation_figures(measured.evaluation(row.round)),
        "accuracy_missing": measured.missing(row.round),
        "incoming": evaluation_figures(row.evaluation),
        "codecs": sorted({update.codec for update in row.updates if update.codec is not None}),
        "codec_error": max(lost, default=None),
        "bytes_per_silo": (row.received_bytes + row.sent_bytes) / row.accepted if row.accepted else None,
        "updates": [_update(update) for update in row.updates],
    }


def _update(row: UpdateRow) -> dict[str, Any]:
    return {
        **{name: value for name, value in vars(row).items() if name != "evaluation"},
        **evaluation_figures(row.evaluation),
    }


def history_lines(rows: Sequence[Mapping[str, Any]], *, silos: bool = False) -> list[str]:
    """Return ``history_of`` as a table; below a round the updates that counted less than claimed.

    ``silos``: below a round all of its updates. A finished run whose last model is not measured ends with the reason.
    """
    head = f"{'round':>5} {'status':9} {'accepted':>8} {'refused':>7} {'examples':>8} {'loss':>8} {'accuracy':>9}"
    lines = [f"{head} {'MB in':>8} {'MB out':>8} {'MB/silo':>8} {'lost':>6} {'seconds':>8} model"]
    for row in rows:
        missing = row.get("accuracy_missing") or ""
        loss = f"{loss_text(row['loss'], row['count']):>8}" if row["loss"] is not None else f"{'-':>8}"
        unknown = "-" if missing in ("", "no-model") else missing
        accuracy = f"{row['accuracy']:9.3f}" if row["accuracy"] is not None else f"{unknown:>9}"
        seconds = f"{row['seconds']:8.1f}" if row["seconds"] is not None else f"{'-':>8}"
        each = f"{row['bytes_per_silo'] / 1e6:8.2f}" if row["bytes_per_silo"] is not None else f"{'-':>8}"
        lost = f"{min(row['codec_error'], MOST_LOST):6.1%}" if row["codec_error"] else f"{'-':>6}"
        moved = f"  the clock moved by {row['clock_moved']:+.0f} s" if row["clock_moved"] else ""
        lines.append(
            f"{row['round']:5} {row['status']:9} {row['accepted']:8} {row['refused']:7} {row['examples']:8} {loss} "
            f"{accuracy} {row['received_bytes'] / 1e6:8.2f} {row['sent_bytes'] / 1e6:8.2f} {each} {lost} {seconds} "
            f"{(row['model_sha256'] or '-')[:12]}{moved}"
        )
        lines += [
            f"{'':5} {update['silo']:20} {claim_text(update)}"
            for update in row["updates"]
            if silos or is_limited(update)
        ]
    if any(row["loss"] is not None for row in rows):
        lines.append(ROUNDED_LINE)
    last = (rows[-1].get("accuracy_missing") or "") if rows else ""
    return lines + ([f"round {rows[-1]['round']}: {MISSING[last]}"] if last in AFTER_THE_RUN else [])
