"""The commands ``extract``, ``features`` and ``import-features``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, counted, end_with, say
from ...base.errors import DataError, Interrupted, interruption
from ...base.options import JsonOption, ThreadsOption, TrustedKeyOption
from . import AGENT, ConfigOption, DirOption
from .backend_options import (
    BackendOption,
    BatchOption,
    DeviceOption,
    ExtractPrecisionOption,
    ReadersOption,
    RequireOption,
    StoreOption,
    notice,
    show_pipeline,
    show_placements,
)
from .extract_options import ExtractOptions
from .own_settings import OwnStoreOption

if TYPE_CHECKING:
    from ..extraction.clip_notes import ClipNote
    from ..extraction.report import ExtractReport


@command
@AGENT.errors_name_the_place
def extract(
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            help="The bundle folder that flamest-export made, or miniworld, the small one in the package; by default "
            "agent.toml's.",
        ),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos",
            help="Folder of clips as LABEL/clip.mp4, or with a labels.csv (path,label,group); by default agent.toml's.",
        ),
    ] = None,
    store: OwnStoreOption = None,
    threads: ThreadsOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try clips again that failed in an earlier run.")] = False,
    clip_timeout: Annotated[
        float | None,
        typer.Option(
            "--clip-timeout",
            min=1.0,
            max=86400.0,
            help="Seconds that decoding one clip may take, 120 by default; with more than before, clips that timed out "
            "are tried again.",
        ),
    ] = None,
    max_clip_gb: Annotated[
        float | None,
        typer.Option(
            "--max-clip-gb",
            min=0.001,
            max=10_000.0,
            help="Larger video files are reported, not read; 16 by default.",
        ),
    ] = None,
    trusted_key: TrustedKeyOption = None,
    backend: BackendOption = None,
    require_backend: RequireOption = False,
    precision: ExtractPrecisionOption = None,
    device: DeviceOption = None,
    batch: BatchOption = None,
    readers: ReadersOption = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Turn a folder of video clips into features: an embedding of each clip in the feature store.

    Nothing is sent anywhere. Clips are identified by their content: run the command again after adding
    clips, changing labels or an interruption, and only new clips are computed. A clip that cannot
    be read is reported and skipped, and not tried again until --retry asks for it; if no clip is usable,
    the command exits with 65. Ctrl-C ends it within seconds, with exit code 130; nothing is lost.

    Next to agent.toml no option is needed: bundle, videos, store, trusted keys, limits of a clip, cores, backends
    and devices are the daemon's.

    The last lines show where each network ran, and with how many readers and clips at once; flamest-agent doctor
    shows what this machine can run, and what it lacks.
    """
    from ...base.process import Shutdown
    from ...base.progress import progress_bar
    from ..extraction.clip_notes import clip_notes
    from ..extraction.extract import clips_to_extract, extract_clips

    options = ExtractOptions(
        bundle, videos, store, threads, retry, clip_timeout, max_clip_gb, trusted_key, backend, require_backend,
        precision, device, batch, readers,
    )  # fmt: skip
    request = options.request(AGENT.place(config, folder), say_so=not as_json)
    clips = clips_to_extract(request.videos, request.rules)
    notes = clip_notes(clips, request.rules)
    if not as_json:
        _show_notes(notes)
    shutdown = Shutdown.on_signals()
    with progress_bar("extracting", len(clips.clips), unit="clips") as progress:
        report = extract_clips(request, clips, on_clip=progress.advance, stop=lambda: shutdown.requested, notice=notice)
    if not as_json:
        _show(report, request.store)
        show_placements(report.placements, request.backend_options)
        show_pipeline(report.pipeline)
    result = _result(report, notes)
    if report.stopped:
        end_with(_stopped(report, shutdown.signal), result, as_json=as_json)
    if report.nothing_usable:
        end_with(_nothing_usable(report), result, as_json=as_json)
    return result


@command
def features(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="The file to write, FILE.npz.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="Which features, where the store holds several; its beginning is enough.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Which precision, where the store holds several.")] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Write features, labels and clip ids to an .npz file, for a notebook.

    Arrays: x float32 [N, D], y (class name, empty where unknown), clip (SHA-256 of the video file, or of
    file and times), group, caption, path, file, start_s and end_s (of a segment, seconds; NaN for a whole
    file), person, camera; and the scalars fingerprint, precision and vlm_width (x[:, :vlm_width] is the
    vision-language part). Read it with numpy.load(FILE). The file reveals what the videos show: keep it at
    this silo.
    """
    from ..extraction.npz import write_npz
    from ..extraction.store import FeatureStore

    with FeatureStore.open(store, create=False, read_only=True) as opened:
        stored = opened.read(fingerprint, precision)
    write_npz(out, stored)
    clips, width = stored.x.shape
    if not as_json:
        say(f"{out}: {clips} clips, {width}-d embeddings, {len(set(stored.labels) - {None})} classes")
    return {
        "features": str(out),
        "clips": clips,
        "width": width,
        "vlm_width": stored.vlm_width,
        "classes": len(set(stored.labels) - {None}),
        "fingerprint": stored.fingerprint,
        "precision": stored.precision,
    }


@command
def import_features(
    file: Annotated[Path, typer.Argument(help="x [N, D], y class names, optional group and clip.", metavar="FILE.npz")],
    store: StoreOption,
    name: Annotated[
        str, typer.Option("--name", help="Name of the embeddings, the same at every silo of a run, such as vgg16-fc7.")
    ] = "features",
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Import your own embeddings; they are trained and federated on like extracted ones.

    The file holds x (floating point [N, D]) and y (class names, fixed-width text), and may hold
    group (clips of one scene, held out together), clip (a name for each), caption, file, start_s and
    end_s (seconds of a segment in its file, NaN for a whole file), person and camera. The fingerprint
    that a run pins is imported:NAME:D. Importing the same file again changes nothing.
    """
    from ..extraction.npz import read_npz
    from ..extraction.store import FeatureStore

    imported = read_npz(file, name)
    with FeatureStore.open(store) as opened:
        opened.add_rows(imported)
    fingerprint, labels = imported.fingerprint, imported.labels
    if not as_json:
        say(f"{store}: {len(imported)} clips of {len(labels)} classes imported as {fingerprint}")
    return {
        "store": str(store),
        "clips": len(imported),
        "width": imported.x.shape[1],
        "classes": len(labels),
        "fingerprint": fingerprint,
        "precision": imported.precision,
    }


def _show_notes(notes: Sequence[ClipNote]) -> None:
    for note in notes:
        say(f"warning: {note.text}")
        if note.fix:
            say(f"  fix: {note.fix}")


def _result(report: ExtractReport, notes: Sequence[ClipNote]) -> dict[str, Any]:
    """Return the report for --json."""
    import msgspec

    result = dict(msgspec.to_builtins(report))
    result["clip_notes"] = [{"code": note.code, "count": note.count, "text": note.text} for note in notes]
    result["followed"] = result.pop("used_stored_precision")
    del result["placements"]
    result["backends"] = {placement.graph: placement.as_json() for placement in report.placements}
    return result


def _show(report: ExtractReport, store: Path) -> None:
    """Print the report: counts, time per stage, and the clips that failed."""
    from rich.console import Console
    from rich.table import Table

    extracted = counted(report.extracted, "clip")
    counts = f"{extracted} extracted, {report.skipped} already in the store, {report.failed_clips} failed"
    say(f"{store}: {counts}")
    if report.ms_per_clip is not None:
        table = Table("stage", "ms per clip", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for stage, milliseconds in report.stages_ms.items():
            table.add_row(stage, f"{milliseconds:.1f}")
        table.add_row("whole clip (stages overlap)", f"{report.ms_per_clip:.1f}")
        Console().print(table)
    say(f"peak memory: {report.peak_mb:.0f} MB")
    for crash in report.crashes:
        say(f"the worker for {crash.device} ended ({crash.reason}); {crash.clips} clips were in work")
    for note in report.notes:
        say(f"warning: {note}")
    if report.unlisted:
        why = "other parts of their files are, or none"
        left = counted(report.unlisted, "clip") + " in the store, not listed any more"
        say(f"{left} ({why}): kept, and not trained on")
    for warned in report.warnings:
        say(f"warning: {warned.clip}: {warned.warning}")
    for failed in report.failed:
        say(f"failed{' earlier' if failed.known else ''}: {failed.clip}: {failed.reason}")
    if known := sum(failed.clips for failed in report.failed if failed.known):
        say(f"{known} of them failed in an earlier run and were not tried again: use --retry")


def _stopped(report: ExtractReport, number: int) -> Interrupted:
    """Return the error of an extraction that signal ``number`` ended."""
    done = report.extracted + report.skipped + report.failed_clips
    return interruption(
        number,
        f"stopped with {report.clips - done} of {report.clips} clips left"
        + ("; the others are in the store" if report.extracted + report.skipped else ""),
        fix="run the same command again to continue",
    )


def _nothing_usable(report: ExtractReport) -> DataError:
    from ..extraction.failures import count_by_code

    counts = ", ".join(f"{count} {code}" for code, count in count_by_code(report.failed).items())
    known = all(failed.known for failed in report.failed)
    return DataError(
        f"none of the {report.clips} clips is usable: {counts}",
        fix="run the same command with --retry to try them again"
        if known
        else "see the errors above; flamest-agent doctor shows if this machine can decode video",
        code="all_clips_failed",
    )
