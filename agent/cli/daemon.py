"""The commands ``keygen``, ``run`` and ``status``: from this silo's key to its running daemon."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, counted, end_with, say
from ...base.options import JsonOption, LogLevelOption, TrustedKeyOption
from . import AGENT, ConfigOption, DirOption

IN_WORDS = {  # what a daemon is doing, where one word says too little
    "duplicate_identity": "another agent uses this silo's certificate",
    "failed": "the last task failed, nothing was sent",
    "finished": "the run has finished",
    "refused_by_policy": "the policy refused a round, nothing was sent",
    "standing_aside": "too few clips to contribute, nothing is sent; waiting for the final model",
    "unreachable": "the coordinator does not answer",
    "waiting": "waiting for the coordinator",
}

if TYPE_CHECKING:
    from ..settings import AgentSettings
    from ..status import AgentStatus


@command
def keygen(
    name: Annotated[str, typer.Argument(metavar="NAME", help="This silo's name: 1 to 40 of a-z, 0-9 and '-'.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the key and the request.")] = Path(),
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make this silo's private key and the request that the coordinator's operator signs.

    The key stays on this machine. The operator returns silo.pem and ca.pem; agent.toml names all three.
    """
    from ..identity import make_request
    from ..settings import write_settings_template

    made = make_request(name, out)
    template = write_settings_template(out, made.key_path.name)
    if not as_json:
        place = AGENT.place(None, out)
        say(f"key (keep it here and secret): {made.key_path}")
        say(f"request (send it to the coordinator's operator): {made.csr_path}")
        say(f"the operator runs: flamest-coordinator silo add {name} --csr {made.csr_path.name}")
        say(f"and sends back silo.pem and ca.pem: put them next to {made.key_path.name}")
        if template is not None:
            say(f"settings to fill in: {template}")
        else:
            say(f"{made.key_path.with_name('agent.toml')} was there and is not changed: its key must be this one")
        say(place.hint("then: flamest-agent run --check-config"))
    return {"name": name, "key": str(made.key_path), "csr": str(made.csr_path), "settings": template and str(template)}


@command
@AGENT.errors_name_the_place
def run(
    config: ConfigOption = None,
    folder: DirOption = None,
    check_config: Annotated[
        bool,
        typer.Option("--check-config", help="Check settings, files and the connection to the coordinator, and end."),
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="With --check-config: do not connect.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End when the run has finished instead of waiting.")] = False,
    log_level: LogLevelOption = None,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Join a coordinator and train whenever it asks. Runs until stopped (Ctrl-C or SIGTERM).

    A new certificate that replaces the old one is used from the next round on, without a restart;
    SIGHUP (kill -HUP PID) requests it.

    --check-config ends with 69 when the settings are good and no coordinator answers, with 77 when it refuses this
    silo's certificate, with 65 when this silo's bundle does not fit its run. It sends no data; the certificate that it
    shows is entered in the egress ledger.
    """
    import msgspec

    from ...base.errors import UsageError
    from ...base.log import configure_logging
    from ...base.process import Shutdown, keep_crashes_private, tune_malloc
    from ..settings import check_enrolled, load_agent_settings

    if offline and not check_config:
        raise UsageError("--offline is for --check-config: the daemon connects", fix="give both, or neither")
    path = AGENT.place(config, folder).path
    settings = load_agent_settings(path, also_trusted=tuple(trusted_key or ()))
    if check_config:
        return _check(path, settings, offline=offline, as_json=as_json)
    check_enrolled(settings.coordinator)

    from ...fedproto.tls import certificate_silo
    from ..daemon import run_agent

    shutdown = Shutdown.on_signals()
    log = configure_logging(settings.log, level=log_level)
    keep_crashes_private(full_messages=log.level == "debug")
    silo = certificate_silo(settings.coordinator.certificate)
    tune_malloc()
    status = run_agent(settings, silo, shutdown, once=once)
    return dict(msgspec.to_builtins(status))


def _check(path: Path, settings: AgentSettings, *, offline: bool, as_json: bool) -> dict[str, Any]:
    """Check the settings, then the coordinator; the settings are reported as good before no one answers."""
    from ...base.errors import DataError, FlamestError, IdentityError, UnreachableError
    from ...fedproto.tls import certificate_silo
    from ..config_check import clip_warnings, dial, embedding_problem, label_notes
    from ..handshake import key_warning
    from ..settings import check_environment

    check_environment(settings)
    overrides = settings.policy.overrides()
    warnings = [*filter(None, [key_warning(settings.coordinator.key)]), *clip_warnings(settings)]
    result = {"config": str(path), "ok": True, "overrides": list(overrides), "warnings": warnings, "dial": "not tried"}
    if not as_json:
        say(f"{path}: OK")
        for override in overrides:
            say(f"  OVERRIDE: {override} (docs/guides/privacy.md)")
        for warning in warnings:
            say(f"  warning: {warning}")
    if offline:
        return result
    address = settings.coordinator.address
    try:
        run = dial(settings, certificate_silo(settings.coordinator.certificate))
        if (problem := embedding_problem(settings, run)) is not None:
            raise problem
        notes = label_notes(settings, run)
    except FlamestError as error:
        result["dial"] = {UnreachableError: "unreachable", IdentityError: "refused"}.get(type(error), "failed")
        result["ok"] = not isinstance(error, DataError)  # of which the run and this silo do not fit each other
        end_with(error, result, as_json=as_json)
    if not as_json:
        say(f"  coordinator at {address}: reached; run '{run.run}' of {run.rounds} rounds, {len(run.labels)} classes")
        for note in notes:
            say(f"  note: {note}")
    return {**result, "dial": "reached", "run": run.run, "notes": notes}


@command
@AGENT.errors_name_the_place
def status(config: ConfigOption = None, folder: DirOption = None, as_json: JsonOption = False) -> dict[str, Any]:
    """Show what the daemon is doing, what it has sent, and if it is running; exit code 69 when it is not."""
    import msgspec

    from ..settings import load_agent_settings
    from ..status import is_alive, not_running, read_status

    place = AGENT.place(config, folder)
    settings = load_agent_settings(place.path)
    now = read_status(settings.state)
    alive = is_alive(settings.state)
    if not as_json:
        for line in _status_lines(now, settings, place.path, alive=alive):
            say(line)
    result = {**msgspec.to_builtins(now), "alive": alive, "certificate_days": now.certificate_days}
    if not alive:
        end_with(not_running(settings.state, fix=place.hint("flamest-agent run")), result, as_json=as_json)
    return result


def _status_lines(status: AgentStatus, settings: AgentSettings, config: Path, *, alive: bool) -> list[str]:
    """Return the status in words, one fact a line."""
    import msgspec

    from ...fedproto.tls import WARN_DAYS
    from ..drift import ADVICE, Drift
    from ..status import renewal_fix
    from ..training.gain import Gain

    lines: list[str] = []
    doing = IN_WORDS.get(status.doing, status.doing)
    if progress := status.detail if status.doing == "extracting" else "":
        doing += f": {progress}"
    lines.append(f"{f'running (PID {status.pid})' if alive else 'NOT RUNNING'}: {doing}, since {status.since}")
    if status.detail and not progress:
        lines.append(f"  {status.code + ': ' if status.code else ''}{status.detail}")
    if status.extraction:
        lines.append(f"  the last extraction failed: {status.extraction}")
    if status.failed_clips:
        counts = ", ".join(f"{count} {code}" for code, count in status.failed_clips.items())
        lines.append(f"clips of the videos that cannot be used: {sum(status.failed_clips.values())} ({counts})")
        lines.append(f"  which, and why: {_extract_command(settings, config)}")
        lines.append("  (--retry tries them again)")
    if status.unlisted_clips:
        lines.append(f"clips in the store that are not listed any more, and not trained on: {status.unlisted_clips}")
    if status.epsilon_budget is not None:
        lines.append(
            f"privacy: epsilon {status.epsilon_spent or 0:.3f} of {status.epsilon_budget:g} spent, over all runs"
        )
    if status.evaluations_left == 0 and settings.policy.reports:
        lines.append("evaluations: none is left of policy.evaluations_per_day or evaluations_per_month: updates go on")
    joined = f", run {status.run}: last answered round {status.round} of {status.rounds}" if status.run else ""
    lines.append(f"silo {status.silo}{joined}")
    if status.clips or status.held_out or status.ignored:  # otherwise nothing was trained yet since the start
        counts = f"{status.clips} to train on, {status.held_out} held out"
        lines.append(f"clips: {counts}, {status.ignored} without a label of the run")
        if status.left_out:
            least = f"classes with fewer than {settings.policy.class_floor} clips to train on"
            lines.append(f"  in no update: {counted(status.left_out, 'clip')} of {least} (policy.min_class_samples)")
    lines.append(
        f"left this silo, by its ledger: {counted(status.updates_sent, 'update')}, {status.update_bytes / 1e6:.2f} MB"
    )
    if status.sent_bytes or status.received_bytes:
        sent, received = status.sent_bytes / 1e6, status.received_bytes / 1e6
        lines.append(f"traffic since the start: {sent:.2f} MB sent, {received:.2f} MB received")
    if (left := status.certificate_days) is not None:
        digest = f", SHA-256 {status.certificate_sha256[:8]}" if status.certificate_sha256 else ""
        lines.append(f"certificate: until {status.certificate_expires[:10]}, {left:.0f} days left{digest}")
        if left < WARN_DAYS:
            lines.append(f"  {renewal_fix(status.silo)}")
        if status.certificate_problem:
            lines.append(f"  the new files are not in use: {status.certificate_problem}")
    if status.adopted:
        lines.append(_model_line(status, settings))
        if status.adopted_why:
            lines.append(f"  {status.adopted_why}")
        if status.gain:
            gained = msgspec.convert(status.gain, Gain)
            lines.append(
                f"  gain of the final model over the own head: {gained.text}; flamest-agent evaluate shows classes"
            )
        else:
            lines.append("  what joining has gained on this silo's own clips: flamest-agent evaluate")
    if status.drift:
        drift = msgspec.convert(status.drift, Drift)
        lines += [line for line in (drift.text, f"  {ADVICE}" if drift.found else "") if line]
    for where, graphs in status.graphs_by_place().items():
        lines.append(f"last extraction: {', '.join(graphs)} on {where}")
    return lines


def _model_line(status: AgentStatus, settings: AgentSettings) -> str:
    """Return which model this silo uses, of which run, and where it is."""
    from ..end_of_run import FINAL_MODEL

    of = f" of run '{status.adopted_run}'" if status.adopted_run else ""
    number = f", round {status.adopted_round}" if status.adopted_round else ""
    final = f"the final one{of}"
    model = {
        "own": f"this silo's own{of}",
        "final": final,
        "tuned": f"{final}, tuned on this silo's clips",
        "blend": f"half-way between {final} and that tuned on this silo's clips",
    }[status.adopted]
    return f"model in use: {model}{number} ({settings.state / FINAL_MODEL})"


def _extract_command(settings: AgentSettings, config: Path) -> str:
    """Return the daemon's extraction as a command line, to see its errors or to retry clips that failed."""
    words = ["flamest-agent", "extract"]
    for option, path in (("bundle", settings.bundle), ("videos", settings.videos), ("store", settings.store)):
        words += [f"--{option}", str(path)]
    from ..extraction.groups import DEFAULT_RULES

    work = settings.work
    words += ["--clip-timeout", f"{work.clip_timeout:g}", "--max-clip-gb", f"{work.max_clip_gb:g}"]
    words += ["--require-backend"] * work.require_backend
    words += [] if work.backend == "auto" else ["--backend", work.backend]
    words += [] if work.precision is None else ["--precision", work.precision]
    for key in settings.trusted_keys:
        words += ["--trusted-key", key]
    if settings.rules != DEFAULT_RULES:
        words += ["--config", str(config)]
    return shlex.join(words)
