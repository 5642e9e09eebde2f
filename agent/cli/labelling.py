"""The command ``label``: a page on this machine to label videos on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, counted, say
from ...base.options import JsonOption, TrustedKeyOption
from . import AGENT, SETTINGS_FILE, ConfigOption, DirOption
from .own_settings import BundleOption, ModelOption, own_settings

if TYPE_CHECKING:
    from ..labelling.suggestion_work import SuggestionRequest
    from ..settings import AgentSettings


@command
@AGENT.errors_name_the_place
def label(
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Folder of the videos to label; by default agent.toml's.")
    ] = None,
    bundle: BundleOption = None,
    model: ModelOption = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port of the page's address; 0 takes a free one.")
    ] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser: show the address alone.")] = False,
    trusted_key: TrustedKeyOption = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Label videos in your browser: play them, choose what they show, and mark parts of long ones.

    A page opens in the browser of this machine. It shows the videos of the folder, and everything that you label is
    saved at once in the file labels.csv in that folder. There is nothing to save at the end, and you may close the page
    or end this command at any time. The page explains itself: press ? on it.

    Nothing leaves this machine. The page is open to your browser alone: the address works once, and other users of the
    machine cannot use it. To end: close the page, and press Ctrl-C in the terminal.

    From another computer, when the videos are on this one: start it here with --no-browser --port 8790, and there
    ssh -L 8790:127.0.0.1:8790 THIS-MACHINE; then open the address there.

    With a model of a run, or --bundle and --model, the page suggests a label for videos that have none. A running agent
    or flamest-agent extract may work on the folder meanwhile.
    """
    from ...base.errors import SettingsError
    from ...base.log import configure_logging
    from ..extraction.clips import check_videos_folder
    from ..extraction.labels_table import check_labels_file
    from ..labelling.server import LabelRequest, serve_page

    settings = _settings(videos, config, folder)
    videos = videos or (settings.videos if settings else None)
    if videos is None:
        raise SettingsError(
            f"{AGENT.place(config, folder).path} names no videos", fix="set videos in it, or give --videos DIR"
        )
    check_videos_folder(videos)
    check_labels_file(videos)
    configure_logging(level="warning")
    suggest = _suggestions((bundle, model), settings, videos, tuple(trusted_key or ()))
    request = LabelRequest(
        videos,
        port=port,
        open_browser=not no_browser,
        suggest=suggest,
        **_of_settings(settings, videos, suggest.model if suggest else None),
    )
    result = serve_page(request)
    if not as_json:
        say(f"ended: everything is saved in {result.labels} ({counted(result.saves, 'save')})")
    return {
        "folder": str(result.folder),
        "labels": str(result.labels),
        "saves": result.saves,
        "videos": result.videos,
    }


def _settings(videos: Path | None, config: Path | None, folder: Path | None) -> AgentSettings | None:
    """Return the silo's settings; None where there are none and ``--videos`` says what to label."""
    from ..settings import load_agent_settings

    place = AGENT.place(config, folder)
    if videos is None:
        return own_settings(place, "--videos DIR")
    if config is None and folder is None and not Path(SETTINGS_FILE).exists():
        return None
    return load_agent_settings(place.path)


def _of_settings(settings: AgentSettings | None, videos: Path, model: Path | None) -> dict[str, Any]:
    """Return group rules and what the page shows of the silo."""
    from ...fedproto.model_file import read_model
    from ..labelling.page_state import Known

    classes = read_model(model).labels if model is not None else ()
    if settings is None:
        return {"known": Known(classes)}
    store = settings.store if _is_own(settings, videos) else None
    return {"known": Known(classes, settings.labels.alias, store), "rules": settings.rules}


def _suggestions(
    given: tuple[Path | None, Path | None], settings: AgentSettings | None, videos: Path, keys: tuple[str, ...]
) -> SuggestionRequest | None:
    """Return what to suggest labels with: bundle and model of the options, else of the silo; None without."""
    from ...base.errors import UsageError
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.bundle.signature import read_trusted_keys
    from ..end_of_run import FINAL_MODEL
    from ..labelling.suggestion_work import SuggestionRequest

    bundle, model = given
    trusted = read_trusted_keys(keys, where="--trusted-key")
    if settings is not None:
        trusted = (*trusted, *settings.trust())
        own = settings.state / FINAL_MODEL
        bundle = bundle or settings.bundle
        model = model or (own if own.exists() else None)
    if bundle is not None and model is not None:
        store = settings.store if settings is not None and _is_own(settings, videos) else None
        return SuggestionRequest(resolve_bundle(bundle), model, store, trusted)
    if given != (None, None):
        missing = "--model MODEL.safetensors" if model is None else "--bundle DIR"
        raise UsageError(
            f"{missing.split()[0]} is missing: suggestions need a bundle and a model that was trained on its features",
            fix=f"add {missing}, or leave the other one out",
        )
    return None


def _is_own(settings: AgentSettings, videos: Path) -> bool:
    """True when ``videos`` is the folder whose clips the silo's store holds."""
    return settings.videos is not None and settings.videos.resolve() == videos.resolve()
