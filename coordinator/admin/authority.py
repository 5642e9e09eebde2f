"""Membership of the federation: its certificate authority and the allow-list of silos.

DIR/ca.pem  ca-key.pem            the authority; the key signs silos and stays here
DIR/server.pem  server-key.pem    the coordinator's own
DIR/silos.json                    the allow-list, read by the running server on every call
DIR/silos/NAME/silo.pem  ca.pem   files for a silo; `silo renew` makes a new certificate for the key of silo.pem
DIR/coordinator.toml              settings
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ...base.clock import days_until, parse_utc, utc_text
from ...base.errors import DataError, IdentityError, SettingsError, StorageError, UsageError
from ...base.files import FileLock, FileStamp, fsync_directory, new_directory, read_regular, write_atomic
from ...fedproto.certificates import (
    Identity,
    check_name,
    make_authority,
    make_server_certificate,
    renew_silo,
    sign_silo,
)
from ...fedproto.tls import WARN_DAYS, CertificateInfo, TlsFiles, certificate_info, check_files, read_file

ALLOW_LIST = "silos.json"
MAX_ALLOW_LIST = 64 << 20  # bytes; a silo has about 300
MAX_CERTIFICATE = 1 << 20  # bytes


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One silo on the allow-list. Times are UTC, ISO 8601. Fields at their default are not written."""

    certificate_sha256: str  # of the newest certificate
    added: str
    expires: str
    revoked: str | None = None  # when, or None
    earlier: dict[str, str] = {}  # older certificates that are still valid: SHA-256 to the time when they end
    keys: tuple[str, ...] = ()  # SHA-256 of the public keys of all its certificates; an older list names none

    @property
    def days_left(self) -> float:
        """Until the newest certificate ends; below 0 after that."""
        return days_until(parse_utc(self.expires))


class Silos(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The allow-list's content, by silo name."""

    silos: dict[str, Enrolment]
    revoked_keys: dict[str, str] = {}  # SHA-256 of a public key that was revoked: the silo that had it


def init_federation(folder: Path, hosts: Sequence[str], settings: str) -> None:
    """Make the authority, the server's certificate for ``hosts``, an empty allow-list and a settings file.

    ``folder`` appears whole or not at all and is never overwritten. Raises StorageError, UsageError.
    """
    _refuse_a_used_folder(folder)
    authority = make_authority()
    server = make_server_certificate(authority, hosts)
    with new_directory(folder) as building:
        write_atomic(building / "ca-key.pem", authority.key, mode=0o600)
        write_atomic(building / "ca.pem", authority.certificate)
        write_atomic(building / "server-key.pem", server.key, mode=0o600)
        write_atomic(building / "server.pem", server.certificate)
        write_atomic(building / "coordinator.toml", settings.encode())
        write_silos(building / ALLOW_LIST, Silos({}))


def _refuse_a_used_folder(folder: Path) -> None:
    """Raise StorageError for a folder that holds something, with advice that loses nothing."""
    if (folder / "ca-key.pem").exists():
        raise StorageError(
            f"{folder} exists already, and is a federation: it holds the key of its authority, ca-key.pem",
            fix=f"change its settings in {folder / 'coordinator.toml'}, its server's names with flamest-coordinator "
            "renew --host; for another federation name another folder",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} exists already and is not empty", fix="name a folder that does not exist yet")


def renew_server(folder: Path, hosts: Sequence[str]) -> None:
    """Make a new certificate for the server's key: for ``hosts``, or without any for those of the old one."""
    authority = _authority(folder)
    if not hosts:
        hosts = certificate_info(_read_server_file(folder / "server.pem"), whose=str(folder / "server.pem")).names
    key = _read_server_file(folder / "server-key.pem", made_by_renew=False)
    write_atomic(folder / "server.pem", make_server_certificate(authority, hosts, key=key).certificate)


def check_server_files(files: TlsFiles) -> CertificateInfo:
    """Check the server's own files as ``fedproto.tls.check_files`` does; what is missing comes with its way out."""
    for path in (files.certificate, files.key, files.ca):
        _read_server_file(path, made_by_renew=path == files.certificate)
    return check_files(files)


def _read_server_file(path: Path, *, made_by_renew: bool = True) -> bytes:
    """Return the content of a file that ``init`` made for the server. Raises SettingsError."""
    try:
        return read_file(path)
    except SettingsError as error:
        if not path.exists():
            error.fix = "flamest-coordinator renew --host NAME makes it" if made_by_renew else "put a copy of it back"
        raise


def add_silo(folder: Path, name: str, request: bytes) -> Path:
    """Sign a silo's request and put the silo on the allow-list; return the folder with the files for it.

    A running server accepts the silo at once. Raises UsageError for a bad name or one that is
    enrolled, DataError and IdentityError for a request that cannot be signed or whose key was revoked, StorageError.
    """
    check_name(name)
    authority = _authority(folder)
    with _sole_writer(folder):
        silos = read_silos(folder / ALLOW_LIST)
        known = silos.silos.get(name)
        if known is not None and known.revoked is None:
            raise UsageError(
                f"silo '{name}' is enrolled already, since {known.added}",
                fix=f"for a certificate that ends later: flamest-coordinator silo renew {name}; for a new key: "
                f"flamest-coordinator silo renew {name} --csr NEW.csr; where others may have the old key: "
                f"flamest-coordinator silo revoke {name}, then add it with the request of a new one",
            )
        certificate = sign_silo(authority, name, request)
        revoked = _revoked_keys(folder, silos)
        _refuse_a_revoked_key(certificate, name, revoked)
        hand_over = folder / "silos" / name
        hand_over.mkdir(parents=True, exist_ok=True)
        write_atomic(hand_over / "silo.pem", certificate)
        write_atomic(hand_over / "ca.pem", authority.certificate)
        fsync_directory(hand_over.parent)
        info = certificate_info(certificate, whose=name)
        ends = utc_text(info.expires.timestamp())
        entry = Enrolment(info.sha256, added=utc_text(), expires=ends, keys=(info.key_sha256,))
        write_silos(folder / ALLOW_LIST, Silos({**silos.silos, name: entry}, revoked))
    return hand_over


def renew_enrolment(folder: Path, name: str, request: bytes | None) -> Enrolment:
    """Make a new certificate for an enrolled silo; the one that it has stays valid until it ends.

    It is for the key of the newest certificate, or of ``request`` (PEM), and replaces that certificate in the folder
    with the silo's files. Raises DataError (``unknown_silo``, ``no_certificate``), StorageError,
    and for a request as ``add_silo``.
    """
    authority = _authority(folder)
    with _sole_writer(folder):
        silos = read_silos(folder / ALLOW_LIST)
        known = _known(silos, name)
        handed_over = folder / "silos" / name / "silo.pem"
        if request is not None:
            certificate = sign_silo(authority, name, request)
            _refuse_a_revoked_key(certificate, name, _revoked_keys(folder, silos))
        else:
            certificate = renew_silo(authority, name, _newest_certificate(handed_over, name, known))
        info = certificate_info(certificate, whose=name)
        before = {**known.earlier, known.certificate_sha256: known.expires}
        still = {sha256: ends for sha256, ends in before.items() if days_until(parse_utc(ends)) > 0}
        keys = tuple(sorted({*_keys_of(folder, name, known), info.key_sha256}))
        entry = Enrolment(info.sha256, known.added, utc_text(info.expires.timestamp()), earlier=still, keys=keys)
        # The list comes first: after a crash in between, the certificate in the folder is still on it.
        write_silos(folder / ALLOW_LIST, Silos({**silos.silos, name: entry}, silos.revoked_keys))
        handed_over.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(handed_over, certificate)
        write_atomic(handed_over.with_name("ca.pem"), authority.certificate)
        fsync_directory(handed_over.parent.parent)
    return entry


def _newest_certificate(path: Path, name: str, known: Enrolment) -> bytes:
    """Return a silo's certificate (PEM) from the folder with its files. Raises DataError unless it is enrolled."""
    ask = f"flamest-coordinator silo renew {name} --csr {name}.csr, with the request that keygen made on the silo"
    try:
        pem = read_regular(path, largest=MAX_CERTIFICATE)
    except (StorageError, DataError) as error:
        raise DataError(
            f"the certificate of silo '{name}' is not at {path}: {error.message}", fix=ask, code="no_certificate"
        ) from error
    if certificate_info(pem, whose=str(path)).sha256 not in {known.certificate_sha256, *known.earlier}:
        raise DataError(f"{path} is not the certificate that is enrolled", fix=ask, code="no_certificate")
    return pem


def revoke_silo(folder: Path, name: str) -> None:
    """Revoke a silo with all its certificates: its next call is refused.

    Raises DataError (``unknown_silo``).
    """
    with _sole_writer(folder):
        silos = read_silos(folder / ALLOW_LIST)
        entry = msgspec.structs.replace(_known(silos, name), revoked=utc_text())
        silos = Silos({**silos.silos, name: entry}, silos.revoked_keys)
        write_silos(folder / ALLOW_LIST, Silos(silos.silos, _revoked_keys(folder, silos)))


def _keys_of(folder: Path, name: str, entry: Enrolment) -> tuple[str, ...]:
    """Return the SHA-256 of a silo's public keys; where the list has none, of the certificate in the silo's folder."""
    if entry.keys:
        return entry.keys
    try:
        pem = read_regular(folder / "silos" / name / "silo.pem", largest=MAX_CERTIFICATE)
        info = certificate_info(pem, whose=name)
    except (StorageError, DataError):
        return ()
    return (info.key_sha256,) if info.sha256 == entry.certificate_sha256 else ()


def _revoked_keys(folder: Path, silos: Silos) -> dict[str, str]:
    """Return the SHA-256 of every public key that was revoked, each with the silo that had it."""
    revoked = [(name, entry) for name, entry in silos.silos.items() if entry.revoked is not None]
    return {**silos.revoked_keys, **{key: name for name, entry in revoked for key in _keys_of(folder, name, entry)}}


def _refuse_a_revoked_key(certificate: bytes, name: str, revoked: Mapping[str, str]) -> None:
    """Raise IdentityError (``revoked_key``) when ``certificate`` (PEM) is for a key that was revoked."""
    owner = revoked.get(certificate_info(certificate, whose=name).key_sha256)
    if owner is not None:
        raise IdentityError(
            f"the request is for a key that was revoked, of silo '{owner}': others may have it",
            fix=f"at the silo: flamest-agent keygen {name} --out new; then give its {name}.csr",
            code="revoked_key",
        )


def _known(silos: Silos, name: str) -> Enrolment:
    known = silos.silos.get(name)
    if known is None or known.revoked is not None:
        raise DataError(
            f"silo '{name}' is not enrolled; enrolled: {', '.join(enrolled(silos)) or 'none'}",
            fix=f"flamest-coordinator silo list; to enrol it: flamest-coordinator silo add {name} --csr {name}.csr",
            code="unknown_silo",
        )
    return known


def read_silos(path: Path) -> Silos:
    """Read an allow-list; every name and time in it is one. Raises StorageError, DataError (``bad_allow_list``)."""
    try:
        silos = msgspec.json.decode(read_regular(path, largest=MAX_ALLOW_LIST), type=Silos)
        for name, entry in silos.silos.items():
            check_name(name)
            revoked = () if entry.revoked is None else (entry.revoked,)
            for moment in (entry.added, entry.expires, *entry.earlier.values(), *revoked):
                days_until(parse_utc(moment))
    except StorageError as error:
        raise StorageError(
            f"the allow-list: {error.message}", fix="name the folder that `flamest-coordinator init` made: --dir DIR"
        ) from error
    except (ValueError, TypeError, OverflowError, RecursionError, DataError, UsageError) as error:
        raise DataError(
            f"{path} is not an allow-list: {error}",
            fix="put back a copy of the file; `flamest-coordinator silo list` shows if it can be read",
            code="bad_allow_list",
        ) from error
    return silos


def write_silos(path: Path, silos: Silos) -> None:
    """Write an allow-list, whole or not at all. Raises StorageError."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(silos, order="sorted")) + b"\n")


def enrolled(silos: Silos) -> list[str]:
    """Return the names of the silos that may call now, in ascending order."""
    return sorted(name for name, entry in silos.silos.items() if entry.revoked is None)


def ending_soon(silos: Silos) -> list[tuple[str, Enrolment]]:
    """Return the silos that may call now and whose newest certificate ends within ``WARN_DAYS``, or has; by name."""
    return [(name, silos.silos[name]) for name in enrolled(silos) if silos.silos[name].days_left < WARN_DAYS]


class AllowList:
    """The allow-list of a running server: read again whenever the file was replaced. Raises as ``read_silos``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._silos = read_silos(path)
        self._seen: FileStamp | None = None  # of the file that was read
        self.silos()

    def silos(self) -> Silos:
        """Return the current list; costs one stat() while the file stays the same.

        Raises StorageError when it cannot be read or is damaged: then no silo is accepted, and silos try again.
        """
        try:
            stamp = FileStamp.of(self._path)
        except OSError as error:
            raise StorageError(
                f"cannot read the allow-list {self._path}: {error.strerror}", fix="check that the server may read it"
            ) from error
        if stamp != self._seen:
            try:
                self._silos = read_silos(self._path)
            except DataError as error:
                raise StorageError(error.message, fix=error.fix, code=error.code) from error
            self._seen = stamp
        return self._silos

    def check(self, name: str, certificate_sha256: str) -> None:
        """Raise IdentityError (``not_enrolled``, ``revoked``, ``old_certificate``) unless this silo may call."""
        entry = self.silos().silos.get(name)
        if entry is None:
            raise IdentityError(
                f"silo '{name}' is not enrolled",
                fix="flamest-coordinator silo add NAME --csr FILE",
                code="not_enrolled",
            )
        if entry.revoked is not None:
            raise IdentityError(
                f"silo '{name}' was revoked on {entry.revoked}",
                fix="enrol it again: flamest-coordinator silo add NAME --csr FILE",
                code="revoked",
            )
        if certificate_sha256 != entry.certificate_sha256 and certificate_sha256 not in entry.earlier:
            raise IdentityError(
                f"silo '{name}' showed a certificate from before its enrolment on {entry.added}",
                fix="send the silo its newest silo.pem: flamest-coordinator silo list shows it",
                code="old_certificate",
            )

    def names(self) -> frozenset[str]:
        """Return the silos that may call now."""
        return frozenset(enrolled(self.silos()))


def _authority(folder: Path) -> Identity:
    if not (folder / "ca-key.pem").exists():
        raise SettingsError(
            f"{folder} holds no ca-key.pem: not the folder of a federation's authority",
            fix="name the folder that flamest-coordinator init made: --dir DIR",
        )
    return Identity(key=read_file(folder / "ca-key.pem"), certificate=read_file(folder / "ca.pem"))


def _sole_writer(folder: Path) -> FileLock:
    return FileLock.take(folder / f".{ALLOW_LIST}.lock", owner="another flamest-coordinator silo command")
