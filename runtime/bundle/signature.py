"""Ed25519 signatures (https://www.rfc-editor.org/rfc/rfc8032) of a bundle's manifest.

``bundle.sig`` signs the exact bytes of ``bundle.json``, which holds the SHA-256 of every other file. Only this module
reads it, line by line, because it is read before anything is trusted:

    flamest signatures 1
    ed25519:PUBLIC_KEY SIGNATURE        both in base64; a line per signer, keys in ascending order

A public key is written ``ed25519:PUBLIC_KEY``, a name may follow. Its id, short enough to compare by telephone, is the
beginning of its SHA-256. Only ``check_signatures`` and ``sign_manifest`` need ``cryptography``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import DataError, MissingExtra, SettingsError, StorageError
from ...base.files import printable_path, read_regular

SIGNATURE_FILE = "bundle.sig"
MAX_SIGNATURE_BYTES = 1 << 14  # bytes of bundle.sig, and of a public key file
MAX_SIGNERS = 32
_FIRST_LINE = "flamest signatures 1"
_KEY_TAG = "ed25519:"
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64


@dataclass(frozen=True, order=True)
class PublicKey:
    """An Ed25519 public key; ``name`` is this machine's name for its holder."""

    raw: bytes  # 32
    name: str = ""

    @property
    def id(self) -> str:
        """``3f9c-02aa-71d0-b8e4``: the first 64 bits of the key's SHA-256."""
        digest = hashlib.sha256(self.raw).hexdigest()
        return "-".join(digest[start : start + 4] for start in range(0, 16, 4))

    @property
    def text(self) -> str:
        return f"{_KEY_TAG}{_base64(self.raw)}" + (f" {self.name}" if self.name else "")

    def __str__(self) -> str:
        return f"{self.id} ({self.name})" if self.name else self.id


TrustedKeys = tuple[PublicKey, ...]  # empty: no signer is required, and signatures need only be valid


@dataclass(frozen=True)
class Signature:
    key: PublicKey  # without a name: a bundle cannot name its keys
    raw: bytes  # 64


def is_key_text(entry: str) -> bool:
    """True for a key itself, false for the name of a file."""
    return entry.startswith(_KEY_TAG)


def parse_public_key(text: str) -> PublicKey:
    """Parse ``ed25519:BASE64 [NAME]``; raises ValueError with the reason."""
    word, _, name = text.strip().partition(" ")
    if not word.startswith(_KEY_TAG):
        raise ValueError(f"expected {_KEY_TAG}… and the key in base64")
    name = name.strip()
    if not name.isprintable():
        raise ValueError("its name holds characters that cannot be printed")
    return PublicKey(_decode(word.removeprefix(_KEY_TAG), _KEY_BYTES, "the key"), name)


def read_trusted_keys(entries: Iterable[str | Path], *, where: str) -> TrustedKeys:
    """Read keys from ``ed25519:…`` texts and public key files (``NAME.pub``, one key a line, # starts a comment).

    ``where``: the option that names them, for the message (``--trusted-key``). Raises SettingsError.
    """
    keys: dict[bytes, PublicKey] = {}
    for entry in entries:
        given = str(entry)
        lines = [given] if is_key_text(given) else _key_lines(Path(given), where)
        for line in lines:
            try:
                key = parse_public_key(line)
            except ValueError as error:
                raise SettingsError(
                    f"{where}: {printable_path(Path(given))} is not a public key: {error}",
                    fix="give a NAME.pub that flamest-export keygen wrote, or the line in it that begins with ed25519:",
                ) from error
            keys.setdefault(key.raw, key)
    return tuple(keys.values())


def parse_signatures(data: bytes) -> tuple[Signature, ...]:
    """Parse a ``bundle.sig``; raises ValueError unless ``data`` is exactly as ``format_signatures`` writes it."""
    try:
        first, *lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise ValueError("it is not ASCII text") from None
    if first != _FIRST_LINE:
        raise ValueError(f"it begins with {first[:40]!r}, expected {_FIRST_LINE!r}")
    if not 1 <= len(lines) - 1 <= MAX_SIGNERS:
        raise ValueError(f"it holds {len(lines) - 1} signatures, expected 1 to {MAX_SIGNERS}")
    found = []
    for number, line in enumerate(lines[:-1], start=2):
        key, _, signature = line.partition(" ")
        if not key.startswith(_KEY_TAG):
            raise ValueError(f"line {number} does not begin with {_KEY_TAG}")
        try:
            raw = _decode(key.removeprefix(_KEY_TAG), _KEY_BYTES, "the key")
            found.append(Signature(PublicKey(raw), _decode(signature, _SIGNATURE_BYTES, "the signature")))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    if format_signatures(found) != data:
        raise ValueError("it differs from what flamest-export sign writes")
    return tuple(found)


def format_signatures(signatures: Iterable[Signature]) -> bytes:
    """The bytes of ``bundle.sig``: one signature per key, keys in ascending order."""
    by_key = {signature.key.raw: signature for signature in signatures}
    lines = [f"{_KEY_TAG}{_base64(key)} {_base64(by_key[key].raw)}" for key in sorted(by_key)]
    return ("\n".join([_FIRST_LINE, *lines]) + "\n").encode()


def check_signatures(
    manifest: bytes, signatures: bytes | None, trusted: TrustedKeys, *, bundle: Path
) -> tuple[PublicKey, ...]:
    """Return the signers: the keys of ``signatures``, all of which must be valid for the bytes of ``manifest``.

    With ``trusted`` keys one of them must be a signer; trusted signers carry the name given there. ``signatures`` is
    None when the bundle has none. Raises DataError ``UNTRUSTED``.
    """
    if signatures is None:
        if trusted:
            raise _untrusted_error(
                bundle,
                f"it is not signed, expected a signature of {_any_of(trusted)}",
                fix="ask the operator to sign it: flamest-export sign DIR --key FILE (docs/guides/signing.md)",
            )
        return ()
    try:
        found = parse_signatures(signatures)
    except ValueError as error:
        raise _untrusted_error(bundle, f"{SIGNATURE_FILE} is not a file of signatures: {error}") from error
    for signature in found:
        if not _verifies(manifest, signature):
            raise _untrusted_error(
                bundle, f"in {SIGNATURE_FILE} the signature of {signature.key.id} does not fit this bundle.json"
            )
    names = {key.raw: key for key in trusted}
    if trusted and not any(signature.key.raw in names for signature in found):
        signers = ", ".join(signature.key.id for signature in found)
        raise _untrusted_error(bundle, f"signed by {signers}, expected a signature of {_any_of(trusted)}")
    return tuple(names.get(signature.key.raw, signature.key) for signature in found)


def sign_manifest(manifest: bytes, private_key: bytes) -> Signature:
    """Sign the bytes of ``bundle.json`` with ``private_key``, 32 raw bytes."""
    private = _ed25519().Ed25519PrivateKey.from_private_bytes(private_key)
    return Signature(PublicKey(private.public_key().public_bytes_raw()), private.sign(manifest))


def _verifies(manifest: bytes, signature: Signature) -> bool:
    from_bytes = _ed25519().Ed25519PublicKey.from_public_bytes
    from cryptography.exceptions import InvalidSignature

    try:
        from_bytes(signature.key.raw).verify(signature.raw, manifest)
    except (InvalidSignature, ValueError):
        return False
    return True


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra("cryptography", extra="agent") from error
    return ed25519


def _key_lines(path: Path, where: str) -> list[str]:
    try:
        text = read_regular(path, largest=MAX_SIGNATURE_BYTES).decode()
    except (StorageError, DataError) as error:
        raise SettingsError(
            f"{where}: cannot read the public key {printable_path(path)}: {error.message}",
            fix="give the path of a NAME.pub, or the key itself as ed25519:…",
        ) from error
    except UnicodeDecodeError:
        raise SettingsError(
            f"{where}: {printable_path(path)} is not a public key: it is not text",
            fix="give NAME.pub, which flamest-export keygen wrote",
        ) from None
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise SettingsError(
            f"{where}: {printable_path(path)} holds no public key",
            fix="give NAME.pub, which flamest-export keygen wrote",
        )
    return lines


def _decode(text: str, size: int, what: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{what} is not base64") from None
    if len(raw) != size or _base64(raw) != text:
        raise ValueError(f"{what} is not {size} bytes in base64")
    return raw


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _any_of(keys: TrustedKeys) -> str:
    return " or ".join(str(key) for key in keys)


def _untrusted_error(bundle: Path, problem: str, *, fix: str = "") -> DataError:
    return DataError(
        f"bundle {printable_path(bundle)} is not trusted: {problem}",
        fix=fix
        or "get the bundle again from its operator; or compare key ids with the operator, and add the new key to "
        "the trusted ones (docs/guides/signing.md)",
        code="UNTRUSTED",
    )
