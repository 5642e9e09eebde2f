"""Keys and certificates of a federation: of its authority, its coordinator, its silos.

P-256 throughout (gRPC refuses Ed25519 certificates). A silo's name is the URI
``spiffe://flamest/silo/NAME`` in its certificate and nowhere else on the wire. Certificates follow
RFC 5280; the URI has the form of a SPIFFE identity
(https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md).
"""

from __future__ import annotations

import datetime
import importlib.util
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base.clock import utc_now
from ..base.errors import DataError, IdentityError, MissingExtra, UsageError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

SILO_URI = "spiffe://flamest/silo/"
NAME = re.compile(r"[a-z0-9-]{1,40}")
MAX_PEM = 1 << 20  # bytes of one key, certificate or request
CA_DAYS = 3650
LEAF_DAYS = 365
CLOCK_SLACK = datetime.timedelta(hours=1)  # certificates begin this long ago, for clocks that lag


@dataclass(frozen=True)
class Identity:
    """A private key and the certificate for it, both PEM."""

    key: bytes
    certificate: bytes


def check_name(name: str) -> None:
    """Raise UsageError unless ``name`` can be a silo's: 1 to 40 of a-z, 0-9 and '-'."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"silo name '{name}': expected 1 to 40 of a-z, 0-9 and '-'", fix="choose a name like north-clinic"
        )


def require_package(package: str, *, extra: str | tuple[str, ...] = ("agent", "coordinator")) -> None:
    """Raise MissingExtra unless ``package`` is installed; call before its first late import.

    ``extra``: what brings it to the caller's role; both roles where either may call.
    """
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package inside a package
        found = False
    if not found:
        raise MissingExtra(package, extra=extra)


def make_authority() -> Identity:
    """Make a certificate authority, valid for ten years. Its key signs every certificate of the federation."""
    require_package("cryptography", extra="coordinator")
    from cryptography import x509

    key = _new_key()
    name = _common_name("FLAMeST federation authority")
    builder = _builder(name, key.public_key(), CA_DAYS).issuer_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Identity(_key_pem(key), _signed(builder, key))


def make_server_certificate(
    authority: Identity, hosts: Sequence[str], *, key: bytes | None = None, days: float = LEAF_DAYS
) -> Identity:
    """Make the coordinator's key and certificate for the host names and addresses that silos dial.

    ``key``: an existing private key (PEM) to renew for. Raises UsageError for no host, or a host that
    is neither a DNS name nor an address.
    """
    require_package("cryptography", extra="coordinator")
    from cryptography.x509.oid import ExtendedKeyUsageOID

    names = [host_name(host) for host in hosts]
    if not names:
        raise UsageError("no host name was given for the server's certificate", fix="give at least one --host")
    private = load_key(key, "the server's key") if key is not None else _new_key()
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    request = _Leaf("flamest-coordinator", private.public_key(), names, usage, days)
    return Identity(_key_pem(private), _issue(authority, request))


def make_silo_request(name: str) -> tuple[bytes, bytes]:
    """Make a private key and the signing request for it, both PEM. Raises UsageError for a bad name."""
    check_name(name)
    require_package("cryptography", extra="agent")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    key = _new_key()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SILO_URI + name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(_common_name(name))
    request = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(Encoding.PEM)


def sign_silo(authority: Identity, name: str, request: bytes, *, days: float = LEAF_DAYS) -> bytes:
    """Make a silo's certificate (PEM) for the public key in ``request`` (PEM).

    The operator chooses the name; a name in the request must be the same. Raises UsageError for a bad name, DataError
    (``bad_request``) for a request that cannot be read or is not P-256, IdentityError (``request_name``,
    ``request_signature``) when it is for another name or not signed by the key that it holds.
    """
    check_name(name)
    require_package("cryptography", extra="coordinator")
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    public, asked = _read_request(request)
    if asked and asked != [SILO_URI + name]:
        raise IdentityError(
            f"the request is for {', '.join(asked)}, expected {SILO_URI}{name}",
            fix=f"use that name, or have the silo run: flamest-agent keygen {name}",
            code="request_name",
        )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(SILO_URI + name)]
    return _issue(authority, _Leaf(name, public, names, ExtendedKeyUsageOID.CLIENT_AUTH, days))


def renew_silo(authority: Identity, name: str, certificate: bytes, *, days: float = LEAF_DAYS) -> bytes:
    """Make a new certificate (PEM) for the key in a silo's ``certificate`` (PEM), which the authority signed before.

    Raises UsageError for a bad name, DataError (``bad_certificate``) unless it is a certificate of a P-256 key.
    """
    check_name(name)
    old = load_certificate(certificate, f"the certificate of silo '{name}'")
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    public = old.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise DataError(
            f"the certificate of silo '{name}' is not for a P-256 key",
            fix="make a new key at the silo (flamest-agent keygen) and give its request with --csr",
            code="bad_certificate",
        )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(SILO_URI + name)]
    return _issue(authority, _Leaf(name, public, names, ExtendedKeyUsageOID.CLIENT_AUTH, days))


def load_certificate(pem: bytes, whose: str) -> x509.Certificate:
    """Parse a certificate. Raises DataError (``bad_certificate``) when ``pem`` is not a PEM certificate."""
    require_package("cryptography")
    from cryptography import x509

    problem = DataError(
        f"{whose} is not a PEM certificate",
        fix="give the file as it was made: it begins with -----BEGIN CERTIFICATE-----",
        code="bad_certificate",
    )
    if len(pem) > MAX_PEM:
        raise problem
    try:
        loaded = x509.load_pem_x509_certificate(pem)
        loaded.public_key()  # read only when it is asked for, as the names are
        alternative_names(loaded)
    except _unreadable() as error:
        raise problem from error
    return loaded


def alternative_names(certified: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """Return the DNS names, addresses and URIs of a certificate or a request."""
    from cryptography import x509

    try:
        names = certified.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _unreadable() -> tuple[type[Exception], ...]:
    """Return the errors of cryptography for something that is not what it should be."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    return (ValueError, TypeError, OverflowError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)


def load_key(pem: bytes, whose: str) -> EllipticCurvePrivateKey:
    """Parse a private key. Raises DataError (``bad_key``) unless ``pem`` is a P-256 key in PEM without a password."""
    require_package("cryptography")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    problem = DataError(
        f"{whose} is not a P-256 private key in PEM without a password",
        fix="use the key that flamest-agent keygen or flamest-coordinator init made",
        code="bad_key",
    )
    if len(pem) > MAX_PEM:
        raise problem
    try:
        key = load_pem_private_key(pem, password=None)
    except _unreadable() as error:
        raise problem from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise problem
    return key


def host_name(host: str) -> x509.GeneralName:
    """Return ``host`` as an address or a DNS name of a certificate. Raises UsageError when it is neither."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    label = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    if len(host) > 253 or not re.fullmatch(rf"{label}(\.{label})*", host):
        raise UsageError(
            f"host '{host}': expected a DNS name or an address, without a port",
            fix="give a name like fl.example.org; the port is in server.listen",
        )
    return x509.DNSName(host)


# --- X.509 ---


@dataclass(frozen=True)
class _Leaf:
    common_name: str
    public_key: EllipticCurvePublicKey
    names: Sequence[x509.GeneralName]
    usage: x509.ObjectIdentifier
    days: float


def _issue(authority: Identity, leaf: _Leaf) -> bytes:
    from cryptography import x509

    key = load_key(authority.key, "the authority's key")
    issuer = load_certificate(authority.certificate, "the authority's certificate")
    builder = _builder(_common_name(leaf.common_name), leaf.public_key, leaf.days).issuer_name(issuer.subject)
    builder = builder.add_extension(x509.SubjectAlternativeName(leaf.names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([leaf.usage]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    return _signed(builder.add_extension(identifier, critical=False), key)


def _builder(subject: x509.Name, public: EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
    from cryptography import x509

    now = utc_now()
    builder = x509.CertificateBuilder().subject_name(subject).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCK_SLACK).not_valid_after(now + datetime.timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _read_request(pem: bytes) -> tuple[EllipticCurvePublicKey, list[str]]:
    """Return the public key of a signing request, and the names that it asks for."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    problem = DataError(
        "this is not a certificate request in PEM",
        fix="expected the .csr file that `flamest-agent keygen NAME` wrote on the silo",
        code="bad_request",
    )
    if len(pem) > MAX_PEM:
        raise problem
    try:
        request = x509.load_pem_x509_csr(pem)
        public, names = request.public_key(), alternative_names(request)
    except _unreadable() as error:
        raise problem from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise DataError("the request's key is not P-256", fix="make it with flamest-agent keygen", code="bad_request")
    if not request.is_signature_valid:
        raise IdentityError(
            "the request was not signed with the key that it holds",
            fix="make a new request at the silo: flamest-agent keygen NAME",
            code="request_signature",
        )
    return public, names


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _signed(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _common_name(name: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
