"""``flamest-export inspect``: the contents of a bundle, from its manifest, and its signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...base.console import command
from ...base.errors import MissingExtra
from ...base.options import JsonOption, TrustedKeyOption
from .options import BundleArgument
from .output import show_manifest, signer_ids

if TYPE_CHECKING:
    from ...runtime.bundle.signature import PublicKey


@command
def inspect(
    bundle: BundleArgument, trusted_key: TrustedKeyOption = None, as_json: JsonOption = False
) -> dict[str, Any]:
    """Describe a bundle and its signatures from its manifest alone. Needs no PyTorch and no runtime.

    Files other than the manifest are not read: flamest-export verify does that.
    """
    import msgspec

    from ...runtime.bundle.manifest_reading import read_manifest
    from ...runtime.bundle.opening import open_manifest
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.bundle.signature import read_trusted_keys

    bundle = resolve_bundle(bundle)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    signers: tuple[PublicKey, ...] | None
    try:
        manifest, signers = open_manifest(bundle, trusted)
    except MissingExtra:  # the base install has nothing to check signatures with
        if trusted:
            raise
        manifest, signers = read_manifest(bundle), None
    if not as_json:
        show_manifest(bundle, manifest, signers, trusted)
    return {
        "bundle": str(bundle),
        "fingerprint": manifest.fingerprint,
        "width": manifest.width,
        "precision": manifest.precision,
        **signer_ids(signers, trusted),
        **msgspec.to_builtins(manifest),
    }
