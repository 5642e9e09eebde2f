"""Signatures over a manifest: what is right, what is trusted, and how both are written."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flamest.base.errors import DataError, SettingsError
from flamest.runtime.bundle.signature import (
    PublicKey,
    check_signatures,
    format_signatures,
    parse_public_key,
    parse_signatures,
    read_trusted_keys,
    sign_manifest,
)

KINDS = ("folder", "pipe", "long", "missing")
MANIFEST = b'{"schema": 3}\n'
ANN, BOB, EVE = (bytes([number]) * 32 for number in (1, 2, 3))  # private keys


def key_of(private, name=""):
    return PublicKey(Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw(), name)


def signed_by(*privates, manifest=MANIFEST):
    return format_signatures(sign_manifest(manifest, private) for private in privates)


def refused(signatures, trusted, tmp_path, manifest=MANIFEST):
    with pytest.raises(DataError) as caught:
        check_signatures(manifest, signatures, trusted, bundle=tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("UNTRUSTED", 65)
    assert "docs/guides/signing.md" in caught.value.fix
    return caught.value.message


def test_the_signature_is_the_one_of_rfc_8032():
    """Section 7.1, test 2: anyone's Ed25519 gives the same bytes."""
    private = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    made = sign_manifest(b"\x72", private)
    assert made.key.raw.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert made.raw.hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_one_trusted_signer_of_several_is_enough(tmp_path):
    both = signed_by(ANN, BOB)
    signers = check_signatures(MANIFEST, both, (key_of(BOB, "bob"),), bundle=tmp_path)
    assert {signer.name for signer in signers} == {"", "bob"}
    assert len(signers) == 2


def test_without_trusted_keys_signatures_are_optional_and_must_be_valid(tmp_path):
    assert check_signatures(MANIFEST, None, (), bundle=tmp_path) == ()
    assert check_signatures(MANIFEST, signed_by(EVE), (), bundle=tmp_path) == (key_of(EVE),)
    assert "does not fit this bundle.json" in refused(signed_by(EVE), (), tmp_path, manifest=MANIFEST + b" ")


def test_unsigned_and_foreign_bundles_are_refused_by_name(tmp_path):
    ann = key_of(ANN, "ann")
    assert f"it is not signed, expected a signature of {ann.id} (ann)" in refused(None, (ann,), tmp_path)
    with pytest.raises(DataError) as caught:
        check_signatures(MANIFEST, None, (ann,), bundle=tmp_path)
    assert "ask the operator to sign it: flamest-export sign DIR --key FILE" in caught.value.fix
    assert "trusted ones" not in caught.value.fix
    message = refused(signed_by(EVE), (ann,), tmp_path)
    assert f"signed by {key_of(EVE).id}, expected a signature of {ann.id} (ann)" in message


def test_a_wrong_signature_next_to_a_trusted_one_is_refused(tmp_path):
    """Otherwise a byte could change unnoticed."""
    lines = signed_by(ANN, BOB).splitlines(keepends=True)
    other = signed_by(ANN, BOB, manifest=b"another").splitlines(keepends=True)
    ann_is = next(number for number in (1, 2) if signed_by(ANN).splitlines(keepends=True)[1] == lines[number])
    mixed = [*lines]
    mixed[3 - ann_is] = other[3 - ann_is]
    assert key_of(BOB).id in refused(b"".join(mixed), (key_of(ANN),), tmp_path)


def test_every_flipped_bit_of_the_signatures_is_refused(tmp_path):
    good, trusted = signed_by(ANN), (key_of(ANN),)
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            refused(bytes(bad), trusted, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + b"\n",
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text[:-1],
        lambda text: text + text.splitlines(keepends=True)[1],
        lambda text: text.splitlines(keepends=True)[0],
        lambda text: b"".join([text.splitlines(keepends=True)[i] for i in (0, 2, 1)]),
        lambda text: text.replace(b"=", b"", 1),
        lambda text: b"",
        lambda text: b"\xff",
        lambda text: text.splitlines(keepends=True)[0] + 40 * text.splitlines(keepends=True)[1],
    ],
)
def test_signatures_have_one_form(change):
    text = signed_by(ANN, BOB)
    assert format_signatures(parse_signatures(text)) == text
    with pytest.raises(ValueError, match=r"signatures|line|text|differs|begins"):
        parse_signatures(change(text))


def test_a_key_signs_once(tmp_path):
    assert signed_by(ANN, ANN) == signed_by(ANN)


def test_a_key_is_read_from_its_text_and_from_its_file(tmp_path):
    ann, bob = key_of(ANN, "ann of the clinic"), key_of(BOB)
    assert parse_public_key(ann.text) == ann
    file = tmp_path / "both.pub"
    file.write_text(f"# two keys\n\n{ann.text}\n{bob.text}\n")
    assert read_trusted_keys([str(file), bob.text], where="trusted_keys") == (ann, bob)
    assert len(ann.id.split("-")) == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ed25519:AAAA", "not 32 bytes"),
        ("ed25519:????", "not base64"),
        ("rsa:AAAA", "expected ed25519:"),
        ("# nothing but a remark", "holds no public key"),
        (b"\xff\xfe", "it is not text"),
        ("-----BEGIN PRIVATE KEY-----", "expected ed25519:"),
    ],
)
def test_an_invalid_public_key_is_a_settings_error(tmp_path, text, problem):
    file = tmp_path / "x.pub"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError, match=problem) as caught:
        read_trusted_keys([file], where="--trusted-key")
    assert caught.value.message.startswith("--trusted-key: ")
    assert str(file) in caught.value.message


def test_a_missing_key_file_is_a_settings_error(tmp_path):
    with pytest.raises(SettingsError, match="cannot read the public key"):
        read_trusted_keys([tmp_path / "none.pub"], where="trusted_keys")


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_file_that_is_no_file_ends_at_once(tmp_path, kind):
    path = tmp_path / "ann.pub"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "long":
            path.write_bytes(b"#" * (1 << 20))
    with pytest.raises(SettingsError, match="cannot read the public key"):
        read_trusted_keys([path], where="--trusted-key")
