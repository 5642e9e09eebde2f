"""``flamest-coordinator backup``, ``restore`` and ``doctor``: care of the state folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.options import JsonOption
from . import ConfigOption


@command
def backup(
    config: ConfigOption,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new folder for the copy.")],
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Copy the state folder (rounds, updates, models), also while the server runs; no keys, no settings."""
    from ..settings import load_coordinator_settings
    from ..storage.backup import back_up

    made = back_up(load_coordinator_settings(config).server.state, to)
    if not as_json:
        print(f"{to}: {made['files']} files, {made['bytes'] / 1e6:.1f} MB")
        print(f"to restore it: flamest-coordinator restore --config {config} --from {to}")
    return made


@command
def restore(
    config: ConfigOption,
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="A folder that `backup` made.")],
    verify: Annotated[bool, typer.Option("--verify", help="Only check that the backup is whole.")] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Replace the state folder by a backup; the old folder is kept next to it. The server must not run.

    Silos continue by themselves: rounds that the backup does not know are trained again.
    """
    from ..settings import load_coordinator_settings
    from ..storage.backup import check_backup
    from ..storage.backup import restore as put_back

    state = load_coordinator_settings(config).server.state
    if verify:
        files = check_backup(source)
        if not as_json:
            print(f"{source}: {len(files)} files, all of them intact")
        return {"backup": str(source), "files": len(files), "verified": True}
    done = put_back(state, source)
    if not as_json:
        print(f"{state}: {done['files']} files" + (f"; the old folder is {done['kept']}" if done["kept"] else ""))
        print(f"next: flamest-coordinator run --config {config}")
    return done


@command
def doctor(config: ConfigOption, as_json: JsonOption = False) -> dict[str, Any]:
    """Check settings, certificates, the state folder and its files; show what is wrong and how to fix it.

    Works next to a running server and changes nothing. Ends with 0 when nothing is wrong, otherwise with 65.
    """
    from ...base.errors import DataError
    from ..admin.doctor import examine

    findings = examine(config)
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if not as_json:
        for finding in findings:
            print(f"{finding.state:6} {finding.check:14} {finding.detail}")
            if finding.fix:
                print(f"{'':21} fix: {finding.fix}")
    if wrong:
        names = ", ".join(finding.check for finding in wrong)
        raise DataError(
            f"{len(wrong)} of {len(findings)} checks found something wrong: {names}",
            fix=wrong[0].fix,
            code="unhealthy",
        )
    return {"checks": [vars(finding) for finding in findings], "healthy": True}
