"""Certificates: what is made, what is signed, what is refused. Handshakes are in tests/coordinator."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from flamest.base.errors import DataError, IdentityError, SettingsError, UsageError
from flamest.base.files import sha256_bytes
from flamest.fedproto import certificates as made
from flamest.fedproto.tls import (
    TlsFiles,
    certificate_info,
    certificate_sha256,
    certificate_silo,
    check_files,
    silo_name,
)

AUTHORITY = made.make_authority()


def signed(name: str = "a", **options) -> tuple[bytes, bytes]:
    key, request = made.make_silo_request(name)
    return key, made.sign_silo(AUTHORITY, name, request, **options)


def test_a_silo_certificate_carries_the_operators_name_and_nothing_else():
    info = certificate_info(signed("site-7")[1], whose="x")
    assert info.names == ("spiffe://flamest/silo/site-7",)
    assert 364 < info.days_left <= 365


def test_the_authority_lasts_ten_years_and_signs_only_leaves():
    info = certificate_info(AUTHORITY.certificate, whose="x")
    assert 3640 < info.days_left <= 3650
    certificate = x509.load_pem_x509_certificate(AUTHORITY.certificate)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (basic.ca, basic.path_length) == (True, 0)


def test_all_keys_are_p256():
    server = made.make_server_certificate(AUTHORITY, ["h"])
    for key in (AUTHORITY.key, server.key, signed()[0]):
        assert isinstance(made.load_key(key, "x").curve, ec.SECP256R1)


def test_the_server_certificate_names_hosts_and_addresses():
    server = made.make_server_certificate(AUTHORITY, ["fl.example.org", "10.0.0.7", "::1"])
    assert certificate_info(server.certificate, whose="x").names == ("fl.example.org", "10.0.0.7", "::1")


@pytest.mark.parametrize("host", ["", "a b", "fl.example.org:7443", "-x", "ex..org", "https://x"])
def test_an_invalid_host_is_refused(host):
    with pytest.raises(UsageError, match="expected a DNS name or an address"):
        made.make_server_certificate(AUTHORITY, [host])


def test_a_server_certificate_needs_a_host():
    with pytest.raises(UsageError, match="no host name"):
        made.make_server_certificate(AUTHORITY, [])


@pytest.mark.parametrize("name", ["", "A", "a_b", "a/b", "a.b", "ä", "x" * 41, "a\n", "../x"])
def test_an_invalid_silo_name_is_refused(name):
    with pytest.raises(UsageError, match="expected 1 to 40 of a-z, 0-9 and '-'"):
        made.make_silo_request(name)
    with pytest.raises(UsageError):
        made.sign_silo(AUTHORITY, name, made.make_silo_request("a")[1])


def request_for(key, names: list[str]) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        uris = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names])
        builder = builder.add_extension(uris, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    "names",
    [["spiffe://flamest/silo/b"], ["spiffe://flamest/silo/a", "spiffe://flamest/silo/b"], ["https://x"]],
)
def test_a_request_for_another_name_is_not_signed(names):
    with pytest.raises(IdentityError) as refused:
        made.sign_silo(AUTHORITY, "a", request_for(ec.generate_private_key(ec.SECP256R1()), names))
    assert refused.value.code == "request_name"


def test_a_request_without_a_name_gets_the_operators():
    certificate = made.sign_silo(AUTHORITY, "a", request_for(ec.generate_private_key(ec.SECP256R1()), []))
    assert certificate_info(certificate, whose="x").names == ("spiffe://flamest/silo/a",)


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())])
def test_a_key_that_grpc_would_refuse_is_not_signed(key):
    with pytest.raises(DataError, match="not P-256"):
        made.sign_silo(AUTHORITY, "a", request_for(key, []))


def test_a_request_made_without_its_key_is_not_signed():
    pem = made.make_silo_request("a")[1]
    request = bytearray(x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER))
    at = request.find(x509.load_pem_x509_csr(pem).signature) + 40
    for value in range(256):  # some values make a signature that does not parse; any other must not verify
        request[at] = value
        try:
            changed = x509.load_der_x509_csr(bytes(request))
        except ValueError:
            continue
        if not changed.is_signature_valid:
            break
    with pytest.raises(IdentityError) as refused:
        made.sign_silo(AUTHORITY, "a", changed.public_bytes(Encoding.PEM))
    assert refused.value.code == "request_signature"


@pytest.mark.parametrize(
    "request_pem",
    [b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n", AUTHORITY.certificate],
)
def test_a_file_that_is_not_a_request_is_not_signed(request_pem):
    with pytest.raises(DataError) as refused:
        made.sign_silo(AUTHORITY, "a", request_pem)
    assert refused.value.code == "bad_request"


def files(folder, key: bytes, certificate: bytes, ca: bytes = AUTHORITY.certificate) -> TlsFiles:
    found = TlsFiles(folder / "ca.pem", folder / "c.pem", folder / "c.key")
    for path, content in zip((found.ca, found.certificate, found.key), (ca, certificate, key), strict=True):
        path.write_bytes(content)
    return found


def test_matching_files_pass(tmp_path):
    key, certificate = signed("a")
    good = files(tmp_path, key, certificate)
    assert check_files(good).names == ("spiffe://flamest/silo/a",)
    assert certificate_silo(good.certificate) == "a"


def test_a_key_of_another_certificate_is_refused(tmp_path):
    with pytest.raises(IdentityError) as refused:
        check_files(files(tmp_path, signed()[0], signed()[1]))
    assert refused.value.code == "key_mismatch"


def test_a_certificate_of_another_authority_is_refused(tmp_path):
    with pytest.raises(IdentityError) as refused:
        check_files(files(tmp_path, *signed(), ca=made.make_authority().certificate))
    assert refused.value.code == "foreign_certificate"


def test_an_expired_certificate_is_refused_with_its_date(tmp_path):
    with pytest.raises(IdentityError, match="expired on 2") as refused:
        check_files(files(tmp_path, *signed(days=-1 / 48)))
    assert refused.value.code == "expired"


def test_a_certificate_of_the_future_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "CLOCK_SLACK", datetime.timedelta(hours=-1))
    with pytest.raises(IdentityError) as refused:
        check_files(files(tmp_path, *signed()))
    assert refused.value.fix == "set this machine's clock"
    assert refused.value.code == "not_yet_valid"


def test_a_file_that_is_missing_or_something_else_is_named(tmp_path):
    good = files(tmp_path, *signed())
    with pytest.raises(SettingsError, match="nowhere"):
        check_files(TlsFiles(tmp_path / "nowhere", good.certificate, good.key))
    with pytest.raises(DataError, match=r"c\.pem is not a P-256 private key"):
        check_files(TlsFiles(good.ca, good.certificate, good.certificate))
    with pytest.raises(DataError, match=r"c\.key is not a PEM certificate"):
        check_files(TlsFiles(good.key, good.certificate, good.key))


def test_the_callers_name_is_the_one_uri_of_its_certificate():
    context = {"x509_subject_alternative_name": [b"spiffe://flamest/silo/a"]}
    assert silo_name(context) == "a"


@pytest.mark.parametrize(
    "names",
    [
        [],
        [b"localhost"],
        [b"spiffe://flamest/silo/a", b"spiffe://flamest/silo/b"],
        [b"spiffe://flamest/silo/a", b"localhost"],
        [b"spiffe://flamest/silo/"],
        [b"spiffe://flamest/silo/A"],
        [b"spiffe://flamest/silo/a/b"],
        [b"spiffe://other/silo/a"],
        [b"spiffe://flamest/silo/\xff"],
    ],
)
def test_a_caller_without_exactly_one_silo_name_is_refused(names):
    with pytest.raises(IdentityError) as refused:
        silo_name({"x509_subject_alternative_name": names})
    assert refused.value.code == "no_silo_name"


def test_the_callers_certificate_has_the_hash_that_the_allow_list_has():
    pem = signed()[1]
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert certificate_sha256({"x509_pem_cert": [pem]}) == certificate_info(pem, whose="x").sha256 == sha256_bytes(der)
    with pytest.raises(IdentityError):
        certificate_sha256({})
