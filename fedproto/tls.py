"""Mutual TLS: this end's files, and the identity of the other end."""

from __future__ import annotations

import base64
import binascii
import datetime
import functools
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..base.clock import days_until, utc_now
from ..base.errors import DataError, IdentityError, SettingsError, StorageError
from ..base.files import FileStamp, read_regular
from .certificates import MAX_PEM, NAME, SILO_URI, alternative_names, load_certificate, load_key, require_package

if TYPE_CHECKING:
    import grpc

SHOWN_NAMES = 5  # of a strange certificate, in a message
SHOWN_CHARACTERS = 100  # of each
WARN_DAYS = 30  # both sides warn of a certificate with fewer days left
AuthContext = Mapping[str, Iterable[bytes]]  # of a caller: gRPC's ``context.auth_context()``


@dataclass(frozen=True)
class TlsFiles:
    """The three PEM files of one end of the wire."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class CertificateInfo:
    """Contents of a certificate."""

    names: tuple[str, ...]  # its DNS names, addresses and URIs
    begins: datetime.datetime  # UTC
    expires: datetime.datetime  # UTC
    sha256: str  # of its DER form, as the allow-list has it
    key_sha256: str  # of its public key in DER form (SubjectPublicKeyInfo)

    @property
    def days_left(self) -> float:
        return days_until(self.expires)


def certificate_info(certificate: bytes, *, whose: str) -> CertificateInfo:
    """Return the contents of a PEM certificate. Raises DataError (``bad_certificate``) when it cannot be read."""
    loaded = load_certificate(certificate, whose)
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return CertificateInfo(
        names=tuple(alternative_names(loaded)),
        begins=loaded.not_valid_before_utc,
        expires=loaded.not_valid_after_utc,
        sha256=loaded.fingerprint(hashes.SHA256()).hex(),
        key_sha256=hashlib.sha256(public).hexdigest(),
    )


def check_files(files: TlsFiles) -> CertificateInfo:
    """Check this end's own files before any connection is tried; return the contents of its certificate.

    Raises SettingsError for a file that cannot be read, DataError for one that is not PEM of its kind,
    IdentityError (``key_mismatch``, ``foreign_certificate``, ``expired``, ``not_yet_valid``).
    """
    pem = read_file(files.certificate)
    certificate = load_certificate(pem, str(files.certificate))
    authority = load_certificate(read_file(files.ca), str(files.ca))
    key = load_key(read_file(files.key), str(files.key))
    if certificate.public_key() != key.public_key():
        raise IdentityError(
            f"{files.key} is not the key of {files.certificate}",
            fix="name the key and the certificate that belong together; after a new keygen ask for a new certificate",
            code="key_mismatch",
        )
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise IdentityError(
            f"{files.certificate} was not signed by the authority in {files.ca}",
            fix="take both files from the same operator",
            code="foreign_certificate",
        ) from error
    info = certificate_info(pem, whose=str(files.certificate))
    check_dates(info, files.certificate)
    return info


def file_stamps(files: TlsFiles) -> tuple[tuple[int, int, int] | None, ...]:
    """Stamps of the three files, None for one that is missing: they differ once a file was replaced or written to."""

    def stamp(path: Path) -> tuple[int, int, int] | None:
        try:
            return FileStamp.of(path).content
        except OSError:
            return None

    return tuple(stamp(path) for path in (files.ca, files.certificate, files.key))


def check_dates(info: CertificateInfo, path: Path) -> None:
    """Raise IdentityError (``expired``, ``not_yet_valid``) unless the certificate read from ``path`` is valid now."""
    now = utc_now()
    if now > info.expires:
        raise IdentityError(
            f"{path} expired on {info.expires:%Y-%m-%d}",
            fix="have a new one made on the coordinator: flamest-coordinator silo renew NAME, or renew for its own",
            code="expired",
        )
    if now < info.begins:
        raise IdentityError(
            f"{path} is valid from {info.begins:%Y-%m-%d %H:%M} UTC on, the clock here says {now:%Y-%m-%d %H:%M}",
            fix="set this machine's clock",
            code="not_yet_valid",
        )


def certificate_silo(path: Path) -> str:
    """Return the silo's name in the certificate file at ``path``.

    Raises SettingsError when the file cannot be read, DataError when it is not a certificate,
    IdentityError (``no_silo_name``) when it names no silo.
    """
    return _silo_of(certificate_info(read_file(path), whose=str(path)).names, str(path))


def silo_name(auth_context: AuthContext) -> str:
    """Return the name of the silo at the other end of a gRPC call, from its verified certificate.

    Raises IdentityError (``no_silo_name``).
    """
    names = auth_context.get("x509_subject_alternative_name") or ()
    return _silo_of([name.decode("utf-8", "replace") for name in names], "the caller's certificate")


def certificate_sha256(auth_context: AuthContext) -> str:
    """Return the SHA-256 of the caller's certificate in DER form, like ``CertificateInfo``. Raises IdentityError."""
    for pem in auth_context.get("x509_pem_cert") or ():
        body = b"".join(line for line in pem.splitlines() if not line.startswith(b"-----"))
        try:
            return hashlib.sha256(base64.b64decode(body, validate=True)).hexdigest()
        except binascii.Error:
            break
    raise IdentityError(
        "the caller presented no certificate",
        fix="the caller needs a certificate: flamest-agent keygen and flamest-coordinator silo add",
        code="no_certificate",
    )


def _silo_of(names: Sequence[str], whose: str) -> str:
    if len(names) == 1 and names[0].startswith(SILO_URI):
        name = names[0].removeprefix(SILO_URI)
        if NAME.fullmatch(name):
            return name
    found = ", ".join(name[:SHOWN_CHARACTERS] for name in names[:SHOWN_NAMES]) or "nothing"
    found += f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    raise IdentityError(
        f"{whose} names {found}, expected exactly {SILO_URI}NAME",
        fix="use the silo.pem that `flamest-coordinator silo add` made",
        code="no_silo_name",
    )


class ServerTls:
    """Mutual TLS for the coordinator, from files that may be replaced while it runs.

    Callers without a certificate of this authority are refused. ``reload`` reads the files again: later handshakes use
    them, open connections stay as they are.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self._lock = threading.Lock()

    def credentials(self) -> grpc.ServerCredentials:
        require_package("grpc", extra="coordinator")
        import grpc

        # gRPC takes None for "as before"; its stubs do not say so.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._take)
        return grpc.dynamic_ssl_server_credentials(self._read(), fetch, require_client_authentication=True)

    def reload(self) -> CertificateInfo:
        """Read the files again; return the certificate's contents. Raises as ``check_files``; nothing changes then."""
        info, fresh = check_files(self._files), self._read()
        with self._lock:
            self._fresh = fresh
        return info

    def _read(self) -> grpc.ServerCertificateConfiguration:
        import grpc

        pair = (read_file(self._files.key), read_file(self._files.certificate))
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=read_file(self._files.ca))

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new files; None: as before. gRPC calls it at every handshake."""
        with self._lock:
            fresh, self._fresh = self._fresh, None
        return fresh


def check_not_expired(auth_context: AuthContext) -> None:
    """Raise IdentityError (``expired``) when the caller's certificate has ended since its connection was made.

    A handshake checks the date once; a connection may stay open for an hour.
    """
    for pem in auth_context.get("x509_pem_cert") or ():
        if utc_now() > _expiry(pem):
            raise IdentityError(
                "the caller's certificate has expired",
                fix="have a new certificate made: flamest-coordinator silo renew NAME",
                code="expired",
            )


@functools.lru_cache(maxsize=1024)
def _expiry(pem: bytes) -> datetime.datetime:
    return certificate_info(pem, whose="the caller's certificate").expires


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Return mutual TLS for a silo: the coordinator must present a certificate of this authority."""
    require_package("grpc", extra="agent")
    import grpc

    return grpc.ssl_channel_credentials(
        root_certificates=read_file(files.ca),
        private_key=read_file(files.key),
        certificate_chain=read_file(files.certificate),
    )


def read_file(path: Path) -> bytes:
    """Return the content of a key or certificate file. Raises SettingsError when it cannot be read."""
    try:
        return read_regular(path, largest=MAX_PEM)
    except (StorageError, DataError) as error:
        raise SettingsError(error.message, fix=error.fix) from error
