"""Keys of bundle signers and their signatures (runtime/bundle/signature.py has the format).

The private key is a PKCS #8 file in PEM, as OpenSSL and its kin read it; it is for signing bundles alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..base.clock import utc_date
from ..base.errors import DataError, MissingExtra, SettingsError, StorageError, UsageError
from ..base.files import open_regular, printable_path, write_atomic, write_new
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.opening import open_bundle
from ..runtime.bundle.signature import (
    SIGNATURE_FILE,
    PublicKey,
    Signature,
    format_signatures,
    parse_signatures,
    sign_manifest,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_LONGEST_KEY = 1 << 14  # bytes of a private key file


@dataclass(frozen=True)
class KeyPair:
    """Files of ``make_key_pair``."""

    private_path: Path  # mode 0600
    public_path: Path  # to be given to everyone who opens bundles
    public: PublicKey


@dataclass(frozen=True)
class Signed:
    manifest: Manifest
    by: PublicKey
    signers: tuple[PublicKey, ...]  # all of the bundle's, ``by`` among them


def make_key_pair(name: str, folder: Path) -> KeyPair:
    """Write ``NAME.key`` and ``NAME.pub`` into ``folder`` (made when absent).

    No file is overwritten. Raises UsageError for an invalid name, StorageError.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a key: expected 1 to 40 of a-z, 0-9 and '-'", fix="flamest-export keygen my-key"
        )
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise MissingExtra("cryptography", extra="export") from error
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = PublicKey(private.public_key().public_bytes_raw(), name)
    made = KeyPair(folder / f"{name}.key", folder / f"{name}.pub", public)
    text = (
        f"# Public key '{name}' of a signer of FLAMeST bundles, made {utc_date()}.\n"
        f"# Key id: {public.id}\n"
        f'# In agent.toml: trusted_keys = ["{name}.pub"]\n'
        f"{public.text}\n"
    )
    if made.private_path.exists() or made.public_path.exists():
        raise _taken(folder, name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(made.private_path, pem, mode=0o600)
        write_new(made.public_path, text.encode())
    except FileExistsError as error:
        raise _taken(folder, name) from error
    except OSError as error:
        raise StorageError(
            f"cannot write into {folder}: {error.strerror}",
            fix="check free space and permissions of the folder, or choose another --out",
        ) from error
    return made


def sign_bundle(bundle: Path, key: Path) -> Signed:
    """Add the signature of the private key file ``key`` to ``bundle.sig``; those that are there stay.

    The whole bundle is checked first: a bundle that is not as exported is not signed. Raises DataError as
    ``open_bundle`` does (a signature of another state of the bundle among them), SettingsError for a
    key file that others can read, or that is none.
    """
    private = _read_private(key)
    try:
        opened = open_bundle(bundle)
    except DataError as error:
        if error.code != "UNTRUSTED":
            raise
        raise DataError(
            error.message,
            fix=f"if the bundle was changed on purpose: rm {bundle / SIGNATURE_FILE}, and have everyone sign again",
            code=error.code,
        ) from error
    mine = sign_manifest(opened.signed, private)  # the bytes that were checked
    signatures: list[Signature] = [*(parse_signatures(opened.signatures) if opened.signatures else ()), mine]
    write_atomic(bundle / SIGNATURE_FILE, format_signatures(signatures))
    checked = open_bundle(bundle, (mine.key,))  # the signed bundle is the checked one
    return Signed(opened.manifest, mine.key, checked.signers)


def _taken(folder: Path, name: str) -> StorageError:
    return StorageError(
        f"{folder / name}.key or .pub exists already and is not overwritten",
        fix="use it, or choose another name, or another folder with --out",
    )


def _read_private(path: Path) -> bytes:
    """The 32 bytes of an Ed25519 private key; raises SettingsError."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise MissingExtra("cryptography", extra="export") from error
    shown = printable_path(path)
    try:
        with open_regular(path, largest=_LONGEST_KEY) as file:
            data, mode = file.read(_LONGEST_KEY), os.fstat(file.fileno()).st_mode
    except (StorageError, DataError, OSError) as error:
        raise SettingsError(
            f"cannot read the private key {shown}: {error}", fix="flamest-export keygen NAME makes one"
        ) from error
    if mode & 0o077:
        raise SettingsError(
            f"the private key {shown} can be read by others (mode {mode & 0o777:04o}): expected 0600",
            fix=f"chmod 600 {shown}; if others could have read it for long, make a new key",
        )
    try:
        private = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(
            f"{shown} is not a readable private key: expected the NAME.key of flamest-export keygen",
            fix="give NAME.key; NAME.pub is the public half",
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise SettingsError(
            f"{shown} is a key of another kind: bundles are signed with Ed25519", fix="flamest-export keygen NAME"
        )
    return private.private_bytes_raw()
