"""``flamest-export verify-weights``: weights files against known releases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, end_with
from ...base.errors import DataError, UsageError
from ...base.options import JsonOption

if TYPE_CHECKING:
    from ..weights.golden import GoldenCaption
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
        bool | None,
        typer.Option(
            "--caption/--no-caption",
            help="Compare BLIP's caption of the picture of transformers' own test with the one that this test states; "
            "the picture is fetched. Without the option: a seeded picture alone; with --no-caption: none.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="That picture, where this machine has no network; as --caption."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="DIR",
            help="With --caption: caption the picture by the graphs of this bundle of the same weights too.",
        ),
    ] = None,
    record: Annotated[
        Path, typer.Option("--record", metavar="FILE", help="File that keeps captions of the picture between runs.")
    ] = Path("known-captions.json"),
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Compare weights with known releases: the SHA-256 of their files, and BLIP's caption of a known picture.

    A hash that no public source states is printed for your records. The picture is drawn from a seed. Its
    caption can only be known where the weights are: the first run writes it to --record, later ones compare
    with it. A file that has the name of a release and another content ends in exit code 65.

    --caption proves the published captioner end to end: its caption of the picture that transformers' test uses must be
    the one that the test states, token by token. A difference ends in exit code 65, a picture that cannot be fetched in
    69.

    Examples:

      flamest-export verify-weights Salesforce/blip-image-captioning-base --caption

      flamest-export verify-weights ./blip-image-captioning-base --image demo.jpg --bundle bundle
    """
    from ..networks.reference import quiet_libraries
    from ..weights.golden import golden_captions, read_picture
    from ..weights.loading import open_blip
    from ..weights.releases import licence_warning
    from ..weights.source import parse_source
    from ..weights.verification import caption_verdict, find_weight_files, identify_file, network_of

    golden = bool(caption) or image is not None or bundle is not None
    if golden and caption is False:
        raise UsageError("--no-caption excludes --image and --bundle", fix="leave --no-caption out")
    with quiet_libraries():
        files = find_weight_files(source)
        verdicts = [identify_file(file) for file in files]
        is_blip, checked = network_of(files[0]) == "blip", None
        if golden and not is_blip:
            raise UsageError(
                f"{source} is no BLIP folder: only a captioner has a caption",
                fix="flamest-export verify-weights FOLDER --caption, with config.json next to the weights",
            )
        said: list[GoldenCaption] = []
        loaded = None
        if golden:
            picture = read_picture(image)  # before minutes of loading
            loaded = open_blip(parse_source("blip", str(files[0].parent)))
            said = golden_captions(loaded, picture, bundle)
        if is_blip and caption is not False:
            checked = caption_verdict(files[0].parent, files[0], record, loaded=loaded)
    warnings = {licence_warning(v.release.network, v.release.licence) for v in verdicts if v.release} - {""}
    if not as_json:
        for verdict in verdicts:
            _show(verdict)
        if checked is not None:
            print(f"caption of the seeded picture: '{checked.caption.caption}' ({checked.verdict}: {record})")
        _show_golden(said)
        for warning in sorted(warnings):
            print(f"WARNING: {warning}")
    _refuse_others(source, verdicts)
    result = {
        "source": source,
        "files": [_row(verdict) for verdict in verdicts],
        "caption": None if checked is None else {"text": checked.caption.caption, "verdict": checked.verdict},
        "record": None if checked is None else str(record),
        "golden": _golden_rows(said),
        "warnings": sorted(warnings),
    }
    if wrong := [one for one in said if not one.equal]:
        end_with(_other_caption(source, wrong[0]), result, as_json=as_json)
    return result


def _show_golden(said: Sequence[GoldenCaption]) -> None:
    from ..weights.golden import EXPECTED, EXPECTED_TEXT

    if said:
        print(f"caption of transformers' test picture, expected: '{EXPECTED_TEXT}'")
        print(f"  {' '.join(map(str, EXPECTED))}")
    for one in said:
        verdict = "EQUAL" if one.equal else f"DIFFERS from token {one.first_difference} on"
        print(f"{verdict}: {one.by}: '{one.text}'")
        if not one.equal:
            print(f"  {' '.join(map(str, one.token_ids))}")


def _golden_rows(said: Sequence[GoldenCaption]) -> dict[str, Any] | None:
    from ..weights.golden import EXPECTED, EXPECTED_TEXT

    if not said:
        return None
    rows = [{"by": one.by, "text": one.text, "token_ids": one.token_ids, "equal": one.equal} for one in said]
    verdict = "equal" if all(one.equal for one in said) else "differs"
    return {"verdict": verdict, "expected": {"text": EXPECTED_TEXT, "token_ids": EXPECTED}, "captions": rows}


def _other_caption(source: str, one: GoldenCaption) -> DataError:
    from ..weights.golden import EXPECTED_TEXT

    return DataError(
        f"{source}: {one.by} says '{one.text}' of transformers' test picture, expected '{EXPECTED_TEXT}': token "
        f"{one.first_difference} is the first that differs",
        fix="these are other weights, or another picture than transformers' test has; with both as published: a fault, "
        "please report the command and what it printed",
        code="other_caption",
    )


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
