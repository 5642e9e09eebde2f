"""``flamest-coordinator silo …``: enrol, renew, revoke and release silos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.app import App
from ...base.console import command, say
from ...base.options import JsonOption
from . import COORDINATOR, ConfigOption, DirOption

if TYPE_CHECKING:
    from ..admin.authority import Enrolment

silo_app = App("silo", no_args_is_help=True, help="Enrol, list, renew, revoke and release silos.")


@silo_app.command("add")
@command
@COORDINATOR.errors_name_the_place
def silo_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The silo's name: 1 to 40 of a-z, 0-9 and '-'.")],
    csr: Annotated[Path, typer.Option("--csr", help="The request that `flamest-agent keygen NAME` wrote there.")],
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Sign a silo's request and let it take part; a running server accepts it at once."""
    from ..admin.authority import add_silo

    hand_over = add_silo(COORDINATOR.place(config, folder).folder, name, _read_request(csr))
    if not as_json:
        say(f"silo '{name}' is enrolled; send it what is in {hand_over}: silo.pem and ca.pem (neither is secret)")
        say("there they go next to agent.toml, which keygen made; once its settings are filled in:")
        say("  flamest-agent run --check-config")
        say("  flamest-agent run")
    return {"name": name, "hand_over": str(hand_over), "files": ["silo.pem", "ca.pem"]}


@silo_app.command("renew")
@command
@COORDINATOR.errors_name_the_place
def silo_renew(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The silo's name.")],
    csr: Annotated[
        Path | None,
        typer.Option("--csr", help="A new request of the silo, for a new key. Without it: for the key that it has."),
    ] = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make a new certificate for an enrolled silo, before the one that it has ends. The run is not interrupted.

    Both are valid until the old one ends, or until `silo revoke`, which revokes both. Send the files that this command
    names to the silo; a running agent uses them as soon as they are in place.
    """
    from ..admin.authority import renew_enrolment

    home = COORDINATOR.place(config, folder).folder
    entry = renew_enrolment(home, name, None if csr is None else _read_request(csr))
    hand_over = home / "silos" / name
    if not as_json:
        say(f"silo '{name}' has a new certificate, until {entry.expires[:10]}; send it {hand_over / 'silo.pem'}")
        say("replace the old one with it there; a running agent uses it without a restart")
        for ends in sorted(entry.earlier.values())[-1:]:
            say(f"the old one is valid until {ends[:10]}")
    return {
        "name": name,
        "hand_over": str(hand_over),
        "files": ["silo.pem", "ca.pem"],
        "expires": entry.expires,
        "earlier": entry.earlier,
    }


@silo_app.command("list")
@command
@COORDINATOR.errors_name_the_place
def silo_list(config: ConfigOption = None, folder: DirOption = None, as_json: JsonOption = False) -> dict[str, Any]:
    """List every silo that was ever added, and until when its certificate is valid."""
    import msgspec

    from ..admin.authority import ALLOW_LIST, read_silos

    place = COORDINATOR.place(config, folder)
    silos = read_silos(place.folder / ALLOW_LIST).silos
    if not as_json:
        for name, entry in sorted(silos.items()):
            say(f"{name:20} {_membership(entry)}")
        if not silos:
            say(place.hint("no silo yet: flamest-coordinator silo add NAME --csr NAME.csr"))
    return {"silos": [{"name": name, **msgspec.structs.asdict(entry)} for name, entry in sorted(silos.items())]}


@silo_app.command("revoke")
@command
@COORDINATOR.errors_name_the_place
def silo_revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The silo's name.")],
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Revoke every certificate of a silo: a running server refuses its next call.

    Its earlier updates stay in the model.
    """
    from ..admin.authority import revoke_silo

    revoke_silo(COORDINATOR.place(config, folder).folder, name)
    if not as_json:
        say(f"silo '{name}' is revoked")
    return {"name": name, "revoked": True}


@silo_app.command("release")
@command
@COORDINATOR.errors_name_the_place
def silo_release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The silo's name.")],
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Let a silo out of quarantine, and forget its refused updates; a running server notices within a second.

    `status` shows who is in quarantine and why. Fix the cause at the silo first.
    """
    from ..settings import load_coordinator_settings
    from ..storage.quarantine import release

    released = release(load_coordinator_settings(COORDINATOR.place(config, folder).path).server.state, name)
    if not as_json:
        state = "was let out of quarantine" if released["was_quarantined"] else "was not in quarantine"
        say(f"silo '{name}' {state}; {released['refusals']} refusals forgotten, the last one: {released['last']}")
    return released


def _read_request(path: Path) -> bytes:
    """Return a request file's content. Raises SettingsError."""
    from ...base.errors import SettingsError
    from ...fedproto.tls import read_file

    try:
        return read_file(path)
    except SettingsError as error:
        fix = "give the file that `flamest-agent keygen NAME` wrote at the silo: --csr NAME.csr"
        raise SettingsError(error.message, fix=fix) from error


def _membership(entry: Enrolment) -> str:
    """Return a silo's state in words: with two valid certificates until when each is, and which is which."""
    if entry.revoked:
        return f"revoked {entry.revoked}"
    state = f"enrolled, certificate until {entry.expires[:10]} ({entry.days_left:.0f} days)"
    if entry.earlier:
        ends = max(entry.earlier.values())
        others = f" and {len(entry.earlier) - 1} more" if len(entry.earlier) > 1 else ""
        old = ", ".join(sha256[:8] for sha256 in entry.earlier)
        state += f", the old one until {ends[:10]}{others}"
        state += f"; by SHA-256: new {entry.certificate_sha256[:8]}, old {old}"
    return state
