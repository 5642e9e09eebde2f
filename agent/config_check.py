"""The check of an agent's settings against the coordinator: is it reached, and does the silo's bundle fit its run?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..base.console import counted
from ..base.errors import DataError, LockedError
from ..base.files import FileLock, printable_path, sha256_bytes
from ..fedproto.fingerprint import imported_width
from ..fedproto.records import RunSettings
from ..fedproto.tls import read_file
from ..runtime.bundle.opening import open_manifest
from .client import Backoff, CoordinatorClient
from .egress.guard import EgressGuard
from .egress.ledger import read_ledger
from .extraction.aliases import near_misses, toml_text
from .extraction.clip_notes import clip_notes, folder_readings
from .extraction.clips import nothing_usable, scan_clips
from .extraction.extract import clips_to_extract
from .extraction.store import FeatureStore
from .settings import AgentSettings
from .status import LOCK_FILE, is_alive
from .training.holdout import hold_out_groups
from .training.shared_frames import Extent, joined_groups

SHOWN_LABELS = 8
DIAL_S = 5.0  # that a check tries to reach the coordinator


def dial(settings: AgentSettings, silo: str) -> RunSettings:
    """Join the coordinator once, as the daemon does, and return its run; no round is asked for.

    The handshake shows this silo's certificate, so it is entered in the ledger first, as by the daemon. Raises
    UnreachableError, IdentityError, DataError, and LockedError and StorageError for the state folder.
    """
    if is_alive(settings.state):
        _require_entered(settings)
    else:
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock.take(settings.state / LOCK_FILE, owner="flamest-agent"):
            EgressGuard.enter_certificate(settings.state, settings.policy, silo, settings.coordinator)
    retry = Backoff(give_up_after_s=DIAL_S, longest_s=1.0, spread_s=1.0)
    with CoordinatorClient.open(settings.coordinator, retry=retry) as client:
        return client.join()


def _require_entered(settings: AgentSettings) -> None:
    """Raise LockedError unless the running daemon, which alone writes the ledger, has entered the certificate."""
    sha256 = sha256_bytes(read_file(settings.coordinator.certificate))
    if all(entry.sha256 != sha256 for entry in read_ledger(settings.state).of("enrolment")):
        raise LockedError(
            f"the running daemon has not taken up {settings.coordinator.certificate} yet, so it is not shown",
            fix="wait until the open round has ended, or kill -HUP the daemon; then flamest-agent run --check-config",
        )


def embedding_problem(settings: AgentSettings, run: RunSettings) -> DataError | None:
    """Return why this silo's bundle, or without one its store, cannot serve the run; None when nothing is wrong."""
    width = imported_width(run.fingerprint)
    if width is not None and width != run.head.inputs:
        return _width_error(f"the embeddings of {run.fingerprint} are {width}-d", width, run)
    if settings.bundle is None or width is not None:
        return _store_problem(settings, run)
    manifest, _ = open_manifest(settings.bundle, settings.trust())
    if manifest.fingerprint != run.fingerprint:
        return DataError(
            f"this silo's bundle has the fingerprint {manifest.fingerprint[:12]}…, the run expects "
            f"{run.fingerprint[:12]}…",
            fix="get the run's bundle from the coordinator's operator, or have them compare run.fingerprint",
            code="other_bundle",
        )
    if manifest.width != run.head.inputs:
        return _width_error(f"the bundle gives {manifest.width}-d embeddings", manifest.width, run)
    return None


def _store_problem(settings: AgentSettings, run: RunSettings) -> DataError | None:
    """Return why the embeddings that the store has for the run do not fit it; an empty store is no problem yet."""
    if not settings.store.exists():
        return None
    with FeatureStore.open(settings.store, create=False, read_only=True) as store:
        width = store.width(run.fingerprint)
    if width in (None, run.head.inputs):
        return None
    return _width_error(f"the store's embeddings are {width}-d", width or 0, run)


def clip_warnings(settings: AgentSettings) -> list[str]:
    """Return what is doubtful about this silo's videos: too few clips for ``policy.min_samples``, groups, rows.

    Raises DataError (``no_clips``) when no video of the folder is usable, or none has a label. Opens no video.
    """
    if settings.videos is None:
        return []
    folder = clips_to_extract(settings.videos, settings.rules)
    if not folder.clips:
        raise nothing_usable(settings.videos, folder)
    labelled = [clip for clip in folder.clips if clip.label is not None]
    if not labelled:
        raise DataError(
            f"none of the {counted(len(folder.clips), 'clip')} of {printable_path(settings.videos)} has a label",
            fix="put clips into folders named by class (LABEL/clip.mp4), or write a labels.csv",
            code="no_clips",
        )
    share, least = settings.policy.hold_out, settings.policy.min_samples
    extents = [Extent(clip.file_name, clip.segment) for clip in labelled]
    groups, labels = joined_groups([clip.group for clip in labelled], extents), [clip.label or "" for clip in labelled]
    rows = (
        hold_out_groups(groups, share, 0, labels)[0].tolist() if share and len(set(groups)) > 1 else range(len(labels))
    )
    rare = _rare_classes(settings, [labels[row] for row in rows])
    train = len(rows) - sum(rare)
    warnings = [f"{note.text} ({note.fix})" for note in clip_notes(folder, settings.rules)]
    if folder.problems:
        first = folder.problems[0]
        warnings.append(f"{counted(len(folder.problems), 'clip')} that cannot be used; {first.name}: {first.reason}")
    if train >= least:
        few = f"fewer than {settings.policy.class_floor} clips to train on"
        left_out = f"about {counted(sum(rare), 'clip')} will be in no update (policy.min_class_samples)"
        return [*warnings, f"of some classes there are {few}: {left_out}"] if rare else warnings
    return [
        f"{counted(len(labelled), 'labelled clip')}, about {train} to train on, policy.min_samples {least}: "
        "no update will be sent, and this silo gets the final model at the end of a run (docs/guides/privacy.md)",
        *warnings,
    ]


def _rare_classes(settings: AgentSettings, labels: Sequence[str]) -> list[int]:
    """Return the numbers of clips of classes that are too rare for an update, given every clip's label."""
    counts = Counter(settings.aliases.of(label) for label in labels).values()
    return [count for count in counts if count < settings.policy.class_floor]


def label_notes(settings: AgentSettings, run: RunSettings) -> list[str]:
    """Return which labels of this silo's clips are not classes of the run: their clips are not trained on.

    Raises DataError when none is a class of the run, and what reading the videos' folder or the store raises.
    """
    found, aliases = _labels(settings, run), settings.aliases
    unknown = sorted(label for label in found if aliases.of(label) not in run.labels)
    listed = _listed(unknown)
    near = {label: near_misses(aliases.of(label), run.labels) for label in unknown}
    lines = [f"{label!r} may be the run's {' or '.join(classes)}" for label, classes in near.items() if classes]
    way = _alias_lines({label: classes[0] for label, classes in near.items() if classes})
    readings = _readings_note(settings, run)
    if found and len(unknown) == len(found):
        raise DataError(
            f"none of this silo's labels is a class of the run: {listed}; the run's: {_listed(run.labels)}"
            + "".join(f"; {line}" for line in (*readings, *lines[:SHOWN_LABELS])),
            fix='folder = "top" under [labels] in agent.toml'
            if readings
            else way
            or "name the folders of clips, or the labels in labels.csv, as the run's classes (capitals count), or "
            "give the run's word for each under [labels.alias] in agent.toml",
        )
    notes = [f"labels that are no class of the run, whose clips are not used: {listed}"] if unknown else []
    notes += [f"{'; '.join(lines[:SHOWN_LABELS])}: {way}"] if lines else []
    lost = sorted({to for word, to in settings.labels.alias.items() if word in found and to not in run.labels})
    notes += [f"[labels.alias] names what is no class of the run: {_listed(lost)}"] if lost else []
    return [*notes, *readings]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_LABELS]) + (", …" if len(names) > SHOWN_LABELS else "")


def _alias_lines(words: Mapping[str, str]) -> str:
    """Return the lines of agent.toml that make aliases of words; empty without words."""
    pairs = [f"{toml_text(word)} = {toml_text(to)}" for word, to in list(words.items())[:SHOWN_LABELS]]
    return f"if so, under [labels.alias] in agent.toml: {', '.join(pairs)}" if pairs else ""


def _readings_note(settings: AgentSettings, run: RunSettings) -> list[str]:
    """Return a line where the outermost folders are classes of the run and the clips' own folders are not."""
    if settings.videos is None or settings.labels.folder != "parent":
        return []
    folder = scan_clips(settings.videos, rules=settings.rules)
    readings = None if folder.listed else folder_readings(folder.clips)
    if readings is None:
        return []
    known = {name for name in (*readings.parent, *readings.top) if settings.aliases.of(name) in run.labels}
    inner, outer = known & set(readings.parent), known & set(readings.top)
    if len(outer) <= len(inner):
        return []
    return [
        f"the outermost folders are the run's classes ({len(outer)} of {len(readings.top)}: {_listed(sorted(outer))}), "
        f'the folders that hold the clips are not ({len(inner)} of {len(readings.parent)}): set folder = "top" under '
        "[labels] in agent.toml"
    ]


def _labels(settings: AgentSettings, run: RunSettings) -> set[str]:
    """Return the labels of the clips that the silo would train on: of its videos, or of its store."""
    if settings.videos is not None:
        return {
            clip.label for clip in scan_clips(settings.videos, rules=settings.rules).clips if clip.label is not None
        }
    with FeatureStore.open(settings.store, create=False, read_only=True) as store:
        return {note.label for note in store.notes(run.fingerprint, settings.precision) if note.label is not None}


def _width_error(found: str, width: int, run: RunSettings) -> DataError:
    return DataError(
        f"{found}, the run expects {run.head.inputs}-d ones",
        fix=f"ask the coordinator's operator to set inputs = {width} in [run] of coordinator.toml, under a new name",
        code="feature_width",
    )
