"""``flamest-export inspect``: the contents of a bundle, from its manifest, and its signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...base.console import command
from ...base.errors import MissingExtra
from ...base.options import JsonOption, TrustedKeyOption
from .options import BundleArgument
from .output import show_manifest, signer_ids

if TYPE_CHECKING:
    from ...runtime.bundle.manifest import Manifest
    from ...runtime.bundle.signature import PublicKey


@command
def inspect(
    bundle: BundleArgument, trusted_key: TrustedKeyOption = None, as_json: JsonOption = False
) -> dict[str, Any]:
    """Describe a bundle and its signatures from its manifest alone. Needs no PyTorch and no runtime.

    Files other than the manifest are not read: flamest-export verify does that. Of TensorRT engines that were compared
    with their graphs on this machine, the verdicts are shown.
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
    verdicts = engine_verdicts(manifest)
    if not as_json:
        show_manifest(bundle, manifest, signers, trusted)
        for engine in verdicts:
            print(f"  {engine['file']} on this machine ({engine['gpu']}, driver {engine['driver']}): {engine['said']}")
    return {
        "verdicts": verdicts,
        "bundle": str(bundle),
        "fingerprint": manifest.fingerprint,
        "width": manifest.width,
        "precision": manifest.precision,
        **signer_ids(signers, trusted),
        **msgspec.to_builtins(manifest),
    }


def engine_verdicts(manifest: Manifest) -> list[dict[str, Any]]:
    """The verdicts that this machine's engine cache holds on the bundle's engines, as rows for ``--json``."""
    import msgspec

    from ...runtime.backends.tensorrt.cache import existing_cache

    cache = existing_cache()
    if cache is None:
        return []
    return [
        {
            "graph": name,
            "file": engine.file,
            "driver": key.driver or "unknown",
            "gpu": key.gpu,
            "said": str(verdict),
            **msgspec.to_builtins(verdict),
        }
        for name, graph in manifest.graphs.items()
        for engine in graph.engines
        for key, verdict in cache.verdicts_on(manifest.files[engine.file].sha256)
    ]
