"""``flamest-agent``: what a silo's administrator types.

``flamest-agent keygen``: the first step of joining a federation.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, say
from ...base.options import JsonOption, LogLevelOption, ThreadsOption, TrustedKeyOption
from .backend_options import BackendOption, ComputeOption, RequireOption, notice, show_places
from .doctor import doctor
from .egress import egress
from .extraction import extract, features, import_features

if TYPE_CHECKING:
    from ..settings import AgentSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The silo's side of FLAMeST: turn labelled video into numbers, train on them, and send only the "
    "trained model's parameters. Videos, captions and labels stay on this machine.",
)

ConfigOption = Annotated[Path, typer.Option("--config", help="The agent's settings, agent.toml.")]
StoreOption = Annotated[Path, typer.Option("--store", help="The feature store made by extract.")]

app.command("doctor")(doctor)
app.command("egress")(egress)
app.command("extract")(extract)
app.command("features")(features)
app.command("import-features")(import_features)


@app.command("run")
@command
def run(
    config: ConfigOption,
    check_config: Annotated[bool, typer.Option("--check-config", help="Check the settings file and end.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End when the run has finished instead of waiting.")] = False,
    log_level: LogLevelOption = "info",
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Join a coordinator and train whenever it asks. Runs until stopped (Ctrl-C or SIGTERM).

    A new certificate in the place of the old one is taken into use between rounds, without a restart;
    SIGHUP (kill -HUP PID) asks for it.
    """
    import msgspec

    from ...base.log import configure_logging
    from ...base.process import Shutdown, keep_crashes_private, tune_malloc
    from ..settings import check_surroundings, load_agent_settings

    settings = load_agent_settings(config, also_trusted=tuple(trusted_key or ()))
    if check_config:
        check_surroundings(settings)
        if not as_json:
            say(f"{config}: fine")
        return {"config": str(config), "ok": True}

    from ...fedproto.tls import certificate_silo
    from ..daemon import run_agent

    configure_logging(level=log_level)
    keep_crashes_private(full_messages=log_level == "debug")
    silo = certificate_silo(settings.coordinator.certificate)
    tune_malloc()
    status = run_agent(settings, silo, Shutdown.on_signals(), once=once)
    return dict(msgspec.to_builtins(status))


@app.command("status")
@command
def status(config: ConfigOption, as_json: JsonOption = False) -> dict[str, Any]:
    """What the daemon is doing, what it has sent, and whether it is alive."""
    import msgspec

    from ...fedproto.tls import WARN_DAYS
    from ..settings import load_agent_settings
    from ..status import is_alive, read_status, renewal_fix

    settings = load_agent_settings(config)
    now = read_status(settings.state)
    alive = is_alive(settings.state)
    if not as_json:
        say(f"{'running' if alive else 'NOT RUNNING'}: {now.doing} since {now.since}")
        if now.detail:
            say(f"  {now.code + ': ' if now.code else ''}{now.detail}")
        if now.extraction:
            say(f"  the last look through the videos failed: {now.extraction}")
        if now.failed_clips:
            counts = ", ".join(f"{count} {code}" for code, count in now.failed_clips.items())
            say(f"clips of the videos that cannot be used: {sum(now.failed_clips.values())} ({counts})")
            say(f"  which, and why: {_extract_command(settings)}")
        if now.epsilon_budget is not None:
            say(f"privacy: epsilon {now.epsilon_spent or 0:.3f} of {now.epsilon_budget:g} spent, over all runs")
        say(f"silo {now.silo}, run {now.run or '-'}: last answered round {now.round} of {now.rounds}")
        say(f"clips: {now.clips} to train on, {now.held_out} held out, {now.ignored} without a label of the run")
        say(
            f"left this site: {now.updates_sent} updates, {now.sent_bytes / 1e6:.2f} MB; "
            f"received {now.received_bytes / 1e6:.2f} MB"
        )
        if (left := now.certificate_days) is not None:
            say(f"certificate: until {now.certificate_expires[:10]}, {left:.0f} days left")
            if left < WARN_DAYS:
                say(f"  {renewal_fix(now.silo)}")
            if now.certificate_problem:
                say(f"  the new files are not in use: {now.certificate_problem}")
        if now.adopted:
            which = {"own": "this silo's own", "final": "the final one of the run"}[now.adopted]
            say(f"model in use: {which}")
            if now.adopted_why:
                say(f"  {now.adopted_why}")
        for where, graphs in now.graphs_by_place().items():
            say(f"last extraction: {', '.join(graphs)} on {where}")
    return {**msgspec.to_builtins(now), "alive": alive, "certificate_days": now.certificate_days}


@app.command("train")
@command
def train(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="Where the model goes, MODEL.safetensors.")],
    passes: Annotated[int, typer.Option(min=1, help="Times the local epochs are run, as rounds would.")] = 80,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs in one pass.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 0.01,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Adam's L2 term.")] = 1e-4,
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers.")] = "512,256",
    hold_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the groups to measure with.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the start, the shuffles and the split.")] = 0,
    fingerprint: Annotated[str | None, typer.Option(help="Which features, where the store holds several.")] = None,
    precision: Annotated[str | None, typer.Option(help="Which precision, where the store holds several.")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Train the classifier on this machine alone, without a coordinator."""
    from ...base.errors import UsageError
    from ...fedproto.records import TrainSettings
    from ..training.local import LocalRequest, train_from_store

    try:
        widths = tuple(int(width) for width in hidden.split(",") if width.strip())
    except ValueError as error:
        raise UsageError(f"--hidden {hidden}: expected whole numbers with commas, like 512,256") from error
    if any(width < 1 for width in widths):
        raise UsageError(f"--hidden {hidden}: expected widths of 1 or more")
    request = LocalRequest(
        store=store,
        fingerprint=fingerprint,
        precision=precision,
        hidden=widths,
        settings=TrainSettings(
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay
        ),
        passes=passes,
        hold_out=hold_out,
        seed=seed,
        threads=threads,
    )
    result = train_from_store(request, out)
    if not as_json:
        say(f"{out}: {result['classes']} classes, {result['examples']} clips, {result['epochs']} epochs")
        if result["accuracy"] is None:
            say("no clips were held out, so no accuracy was measured")
        else:
            say(
                f"accuracy on {result['held_out']} held-out clips: {result['accuracy']:.3f} "
                f"(best {result['best_accuracy']:.3f}, chance {result['chance']:.3f})"
            )
    return result


@app.command("predict")
@command
def predict(
    videos: Annotated[list[Path], typer.Argument(help="Video files.", metavar="VIDEO…")],
    bundle: Annotated[Path, typer.Option("--bundle", help="The bundle whose features the model was trained on.")],
    model: Annotated[Path, typer.Option("--model", help="MODEL.safetensors from train or from the coordinator.")],
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    backend: BackendOption = None,
    require_backend: RequireOption = False,
    precision: ComputeOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Name the action in new videos: the likeliest labels and the caption of a keyframe."""
    from ...runtime.backends.opening import Opening, Place
    from ...runtime.backends.options import parse_backend_options
    from ...runtime.bundle.signature import read_trusted_keys
    from ..predict import predict_videos

    backend_options = parse_backend_options(backend or (), require=require_backend, precision=precision)
    opening = Opening(backend_options, threads, notice=notice)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    places: list[Place] = []
    predictions = []
    for prediction in predict_videos(
        bundle, model, videos, top=top, opening=opening, trusted=trusted, on_open=places.extend
    ):
        labels = [{"label": item.label, "probability": item.probability} for item in prediction.labels]
        entry = {"video": str(prediction.video), "labels": labels, "caption": prediction.caption}
        if prediction.reason:
            entry["reason"] = prediction.reason
        predictions.append(entry)
        if not as_json:
            say(str(prediction.video))
            for item in prediction.labels:
                say(f"  {item.probability:6.1%}  {item.label}")
            say(f"  {prediction.reason or 'caption: ' + prediction.caption}")
    if not as_json:
        show_places(places, backend_options)
    return {"predictions": predictions, "backends": {place.graph: place.as_json() for place in places}}


def _extract_command(settings: AgentSettings) -> str:
    """What the daemon's extraction is as a command; with --retry it tries clips again that failed."""
    words = ["flamest-agent", "extract"]
    for option, path in (("bundle", settings.bundle), ("videos", settings.videos), ("store", settings.store)):
        words += [f"--{option}", str(path)]
    work = settings.work
    words += ["--clip-timeout", f"{work.clip_timeout:g}"] + ["--require-backend"] * work.require_backend
    words += [] if work.backend == "auto" else ["--backend", work.backend]
    words += [] if work.precision is None else ["--precision", work.precision]
    for key in settings.trusted_keys:
        words += ["--trusted-key", key]
    return shlex.join(words) + "  (--retry tries them again)"


def main() -> None:
    app()


@app.command("keygen")
@command
def keygen(
    name: Annotated[str, typer.Argument(help="This silo's name: 1 to 40 of a-z, 0-9 and '-'.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the key and the request.")] = Path(),
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make this silo's private key and the request that the coordinator's operator signs.

    The key stays on this machine. The operator gives back silo.pem and ca.pem; agent.toml names all three.
    """
    from ..identity import make_request
    from ..settings import write_starter

    made = make_request(name, out)
    starter = write_starter(out, made.key_path.name)
    if not as_json:
        print(f"key (keep it here, tell no one): {made.key_path}")
        print(f"request (send it to the coordinator's operator): {made.csr_path}")
        print(f"the operator runs: flamest-coordinator silo add {name} --csr {made.csr_path.name}")
        if starter is not None:
            print(f"settings to fill in: {starter}")
    return {"name": name, "key": str(made.key_path), "csr": str(made.csr_path), "settings": starter and str(starter)}
