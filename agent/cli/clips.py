"""The command ``clips``: the clips of a folder before they are extracted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, counted, end_with, say
from ...base.options import JsonOption
from . import AGENT, ConfigOption, DirOption
from .own_settings import own_settings, settings_of_videos

if TYPE_CHECKING:
    from ..extraction.aliases import LabelAliases
    from ..extraction.clips import ClipFolder
    from ..extraction.groups import ClipRules
    from ..extraction.overview import Overview

SHOWN_PROBLEMS = 20


@command
@AGENT.errors_name_the_place
def clips(
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Folder of clips or with a labels.csv; by default agent.toml's.")
    ] = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show classes, clips and groups of a folder of videos, and what to correct before they are extracted.

    Clips of one group, a person or a scene, are held out of training together. The rule that gives a clip its group,
    and the folder that is its class, are settings: [groups] and [labels] in agent.toml. Opens no video and writes
    nothing; exit code 65 when no clip is usable.
    """
    from ..extraction.aliases import NO_ALIASES
    from ..extraction.clips import nothing_usable
    from ..extraction.extract import clips_to_extract
    from ..extraction.groups import DEFAULT_RULES, RULE_WORDS
    from ..extraction.overview import overview

    place = AGENT.place(config, folder)
    if videos is None and (videos := own_settings(place, "--videos DIR").videos) is None:
        raise _no_videos(place.path)
    settings = settings_of_videos(place, videos, say_so=not as_json)
    rules, aliases = (settings.rules, settings.aliases) if settings else (DEFAULT_RULES, NO_ALIASES)
    found = clips_to_extract(videos, rules)
    counts = overview(videos, found, rules)
    if not as_json:
        for line in _lines(videos, found, counts, rules, aliases):
            say(line)
    result = {
        "videos": str(videos),
        "listed": found.listed,
        "clips": len(found.clips),
        "segments": counts.segments,
        "classes": [
            {"label": each.label, "clips": each.clips, "groups": each.groups, "run_label": _called(each.label, aliases)}
            for each in counts.classes
        ],
        "groups": counts.groups,
        "rule": {"name": rules.groups.rule, "pattern": rules.groups.pattern, "words": RULE_WORDS[rules.groups.rule]},
        "label_folder": rules.label_folder,
        "grouped_by": counts.grouped_by,
        "examples": [{"group": each.group, "clips": each.clips, "names": list(each.names)} for each in counts.examples],
        "every_group": [{"group": each.group, "clips": each.clips, "names": each.names} for each in counts.every_group],
        "gaps": {"count": counts.gaps, "seconds": counts.gap_s},
        "unlisted": list(counts.unlisted),
        "warnings": [
            {"code": note.code, "count": note.count, "text": note.text, "fix": note.fix} for note in counts.notes
        ],
        "rows_read_otherwise": list(found.notes),
        "problems": [{"name": each.name, "code": each.code, "reason": each.reason} for each in found.problems],
    }
    if not found.clips:
        end_with(nothing_usable(videos, found), result, as_json=as_json)
    return result


def _lines(videos: Path, found: ClipFolder, counts: Overview, rules: ClipRules, aliases: LabelAliases) -> list[str]:
    """Return the overview in words, one fact a line."""
    from ...base.files import printable_path
    from ..extraction.groups import RULE_WORDS

    source = {"parent": "the folder that holds a clip is its class", "top": "the outermost folder is a clip's class"}
    what = counted(len(found.clips), "clip")
    if counts.segments:
        what += f" ({counts.segments:,} of them {'a segment' if counts.segments == 1 else 'segments'})"
    lines = [f"{printable_path(videos)}: {what}, {'by its labels.csv' if found.listed else source[rules.label_folder]}"]
    width = max((len(_shown(each.label, aliases)) for each in counts.classes), default=0)
    for each in counts.classes:
        groups = f" in {counted(each.groups, 'group')}" if each.label is not None else ""
        lines.append(f"  {_shown(each.label, aliases):{width}}  {counted(each.clips, 'clip')}{groups}")
    lines.append(f'groups: {counts.groups}; rule "{rules.groups.rule}": {RULE_WORDS[rules.groups.rule]}')
    of_rows = [f"{count} by the column {by}" for by, count in sorted(counts.grouped_by.items()) if by != "rule"]
    if of_rows:
        lines.append(f"  {', '.join(of_rows)} of labels.csv, {counts.grouped_by.get('rule', 0)} by the rule")
    for example in counts.examples:
        more = ", …" if example.clips > len(example.names) else ""
        lines.append(f"  {example.group}: {counted(example.clips, 'clip')} ({', '.join(example.names)}{more})")
    if counts.groups > len(counts.examples) > 0:
        lines.append(f"  … and {counts.groups - len(counts.examples):,} more: --json lists all")
    if counts.gaps:
        lines.append(f"between the segments: {counted(counts.gaps, 'gap')}, {counts.gap_s:g} s that no segment covers")
    if counts.unlisted:
        lines.append(f"not in labels.csv: {counted(len(counts.unlisted), 'video')} ({_some(counts.unlisted)})")
    for note in counts.notes:
        lines.append(f"warning: {note.text}")
        lines += [f"  fix: {note.fix}"] if note.fix else []
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"problem: {each.name}: {each.reason}" for each in found.problems[:SHOWN_PROBLEMS]]
    if (left := len(found.problems) - SHOWN_PROBLEMS) > 0:
        lines.append(f"and {counted(left, 'problem')} more: --json lists all")
    return lines


def _shown(label: str | None, aliases: LabelAliases) -> str:
    if label is None:
        return "(no label)"
    called = aliases.of(label)
    return label if called == label else f"{label} (in the run: {called})"


def _called(label: str | None, aliases: LabelAliases) -> str | None:
    return None if label is None else aliases.of(label)


def _some(names: tuple[str, ...]) -> str:
    from ..extraction.clip_notes import listed_names

    return listed_names(names)


def _no_videos(path: Path) -> Exception:
    from ...base.errors import SettingsError

    return SettingsError(f"{path} names no videos", fix="set videos in it, or give --videos DIR")
