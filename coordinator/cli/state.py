"""``flamest-coordinator backup``, ``restore`` and ``doctor``: care of the state folder."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command, say
from ...base.errors import UsageError
from ...base.findings import show_findings
from ...base.options import JsonOption
from . import COORDINATOR, ConfigOption, DirOption


@command
@COORDINATOR.errors_name_the_place
def backup(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new folder for the copy. Required.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", hidden=True, help="The same as --out.")] = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Copy the state folder (rounds, updates, models), also while the server runs; no keys, no settings."""
    from ..settings import load_coordinator_settings
    from ..storage.backup import back_up

    out = out or to
    if out is None:
        raise UsageError(
            "--out is missing", fix="flamest-coordinator backup --out DIR, a folder that does not exist yet"
        )
    place = COORDINATOR.place(config, folder)
    made = back_up(load_coordinator_settings(place.path).server.state, out)
    if not as_json:
        say(f"{out}: {made['files']} files, {made['bytes'] / 1e6:.1f} MB")
        say(place.hint(f"to restore it: flamest-coordinator restore --from {shlex.quote(str(out))}"))
    return made


@command
@COORDINATOR.errors_name_the_place
def restore(
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="A folder that `backup` made.")],
    config: ConfigOption = None,
    folder: DirOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only check that the backup is whole.")] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Replace the state folder by a backup; the old folder is kept next to it. The server must not run.

    Silos continue by themselves: rounds that the backup does not know are trained again.
    """
    from ..settings import load_coordinator_settings
    from ..storage.backup import check_backup
    from ..storage.backup import restore as put_back

    place = COORDINATOR.place(config, folder)
    state = load_coordinator_settings(place.path).server.state
    if verify:
        files = check_backup(source)
        if not as_json:
            say(f"{source}: {len(files)} files, all of them intact")
        return {"backup": str(source), "files": len(files), "verified": True}
    done = put_back(state, source)
    if not as_json:
        say(f"{state}: {done['files']} files" + (f"; the old folder is {done['kept']}" if done["kept"] else ""))
        say(place.hint("next: flamest-coordinator run"))
    return done


@command
@COORDINATOR.errors_name_the_place
def doctor(config: ConfigOption = None, folder: DirOption = None, as_json: JsonOption = False) -> dict[str, Any]:
    """Check settings, certificates, the state folder and its files; show what is wrong and how to fix it.

    Works next to a running server and changes nothing. Ends with 0 when nothing is wrong, otherwise with 65.
    """
    from ...base.errors import DataError
    from ..admin.doctor import examine

    place = COORDINATOR.place(config, folder)
    findings = [replace(finding, fix=place.hint(finding.fix)) for finding in examine(place.path)]
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if not as_json:
        show_findings(findings)
    if wrong:
        names = ", ".join(finding.check for finding in wrong)
        raise DataError(
            f"{len(wrong)} of {len(findings)} checks found something wrong: {names}",
            fix=wrong[0].fix if as_json else "",  # a person has read it above
            code="unhealthy",
        )
    return {"checks": [vars(finding) for finding in findings], "healthy": True}
