"""``flamest-export verify-weights``: weights files against known releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command
from ...base.errors import DataError
from ...base.options import JsonOption

if TYPE_CHECKING:
    from ..weights.verification import FileVerdict


@command
def verify_weights(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A weights file, a folder as the hub has it, or a published source (OWNER/MODEL, slow_r50, …) in this "
            "machine's caches.",
        ),
    ],
    caption: Annotated[
        bool, typer.Option("--caption/--no-caption", help="For a BLIP folder: caption a known picture too.")
    ] = True,
    record: Annotated[
        Path, typer.Option("--record", metavar="FILE", help="File that keeps captions of the picture between runs.")
    ] = Path("known-captions.json"),
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Compare weights with known releases: the SHA-256 of their files, and BLIP's caption of a known picture.

    A hash that no public source states is printed for your records. The picture is drawn from a seed. Its
    caption can only be known where the weights are: the first run writes it to --record, later ones compare
    with it. A file that has the name of a release and another content ends in exit code 65.
    """
    from ..networks.reference import quiet_libraries
    from ..weights.releases import licence_warning
    from ..weights.verification import caption_verdict, find_weight_files, identify_file, network_of

    with quiet_libraries():
        files = find_weight_files(source)
        verdicts = [identify_file(file) for file in files]
        checked = None
        if caption and network_of(files[0]) == "blip":
            checked = caption_verdict(files[0].parent, files[0], record)
    warnings = {licence_warning(v.release.network, v.release.licence) for v in verdicts if v.release} - {""}
    if not as_json:
        for verdict in verdicts:
            _show(verdict)
        if checked is not None:
            print(f"caption of the picture: '{checked.caption.caption}' ({checked.verdict}: {record})")
        for warning in sorted(warnings):
            print(f"WARNING: {warning}")
    _refuse_others(source, verdicts)
    return {
        "source": source,
        "files": [_row(verdict) for verdict in verdicts],
        "caption": None if checked is None else {"text": checked.caption.caption, "verdict": checked.verdict},
        "record": None if checked is None else str(record),
        "warnings": sorted(warnings),
    }


def _show(verdict: FileVerdict) -> None:
    print(f"{verdict.file}: {verdict.bytes:,} bytes")
    print(f"  sha256   {verdict.sha256}")
    release = verdict.release
    if release is None:
        print("  unknown here: no release of this name is known; keep this hash")
        return
    print(f"  release  {release.source} {release.revision}".rstrip())
    print(f"  licence  {release.licence}")
    if verdict.verdict == "known":
        print(f"  known: it is that of the release, as stated by {release.stated_by}")
    elif verdict.verdict == "differs":
        print(f"  DIFFERS from the release's {release.sha256}, as stated by {release.stated_by}")
    else:
        print("  unknown here: no public source of its hash was found; keep this one and compare with others'")


def _row(verdict: FileVerdict) -> dict[str, Any]:
    release = verdict.release
    return {
        "file": verdict.file,
        "bytes": verdict.bytes,
        "sha256": verdict.sha256,
        "verdict": verdict.verdict,
        "release": None
        if release is None
        else {
            "network": release.network,
            "source": release.source,
            "revision": release.revision,
            "sha256": release.sha256 or None,
            "stated_by": release.stated_by,
            "licence": release.licence,
        },
    }


def _refuse_others(source: str, verdicts: list[FileVerdict]) -> None:
    for verdict in verdicts:
        if verdict.verdict == "differs" and verdict.release is not None:
            raise DataError(
                f"{source}: {verdict.file} has SHA-256 {verdict.sha256[:12]}…, {verdict.release.source} at the pinned "
                f"revision has {verdict.release.sha256[:12]}…",
                fix="if you trained these weights yourself, ignore this; otherwise download the published file again",
                code="other_weights",
            )
