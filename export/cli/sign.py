"""``flamest-export keygen`` and ``sign``: keys and signatures of bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.options import JsonOption
from .options import BundleArgument


@command
def keygen(
    name: Annotated[str, typer.Argument(help="Name of the key: 1 to 40 of a-z, 0-9 and '-'.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the two files.")] = Path(),
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make a key pair to sign bundles with: NAME.key stays with you, NAME.pub goes to every silo.

    A silo that lists NAME.pub under trusted_keys in agent.toml opens only bundles that NAME.key has
    signed. The key is an Ed25519 key, without a password: who has NAME.key can sign in your name.
    """
    from ..signing import make_key_pair

    made = make_key_pair(name, out)
    if not as_json:
        print(f"private key (keep it here, show it to no one): {made.private_path}")
        print(f"public key (give it to the silos): {made.public_path}")
        print(f"key id, to compare by telephone: {made.public.id}")
        print(f"next: flamest-export sign BUNDLE --key {made.private_path}")
    return {
        "name": name,
        "key": str(made.private_path),
        "public_key": str(made.public_path),
        "key_id": made.public.id,
        "text": made.public.text,
    }


@command
def sign(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The private key, NAME.key of keygen.")],
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Sign a bundle: verify every file, then sign the manifest, which holds their hashes.

    The signature goes into bundle.sig next to bundle.json. Several people can sign one bundle: each
    with a key of their own, in any order.
    """
    from ..signing import sign_bundle

    done = sign_bundle(bundle, key)
    if not as_json:
        print(f"{bundle}: signed by {done.by.id}")
        print(f"  fingerprint   {done.manifest.fingerprint}")
        print(f"  made          {done.manifest.created}")
        print(f"  signatures    {', '.join(signer.id for signer in done.signers)}")
        public = key.with_suffix(".pub").name
        print(f'next: give {public} to the silos, for agent.toml: trusted_keys = ["{public}"] (docs/guides/signing.md)')
    return {
        "bundle": str(bundle),
        "fingerprint": done.manifest.fingerprint,
        "created": done.manifest.created,
        "key_id": done.by.id,
        "signed_by": [signer.id for signer in done.signers],
    }
