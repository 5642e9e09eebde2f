"""What a bundle is and whether it is right: ``inspect``, ``verify``, and the list of ``extractors``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...base.console import command
from ...base.errors import MissingExtra
from ...base.options import JsonOption, ThreadsOption, TrustedKeyOption
from ..networks.extractors import EXTRACTORS, count_networks, count_parameters
from .options import BlipOption, BundleArgument, ClipOption, I3dOption, Resnet3dOption, SlowOption, VideomaeOption
from .output import extractor_row, parity_rows, show_extractors, show_manifest, show_parity, show_signers, signer_ids

if TYPE_CHECKING:
    from ...runtime.bundle.signature import PublicKey


@command
def extractors(as_json: JsonOption = False) -> dict[str, Any]:
    """List the extractors with frames, numbers per clip and parameters, beside what the paper prints.

    Parameters are those of the published networks, counted from their architectures; BLIP's word
    embedding and output projection, which are one matrix, count twice, as in the paper.
    """
    from ..libraries import quiet_libraries

    with quiet_libraries():
        counts, networks = count_parameters(), count_networks()
    rows = [extractor_row(entry, counts[name]) for name, entry in EXTRACTORS.items()]
    if not as_json:
        show_extractors(rows)
        print(f"BLIP with each stored value once: {networks['blip'].stored:,}")
        print(f"Student of the knowledge distillation (ResNet-18): {networks['resnet18'].parameters:,}")
    return {
        "extractors": rows,
        "networks": {
            name: {"parameters": count.parameters, "stored": count.stored} for name, count in networks.items()
        },
    }


@command
def inspect(
    bundle: BundleArgument, trusted_key: TrustedKeyOption = None, as_json: JsonOption = False
) -> dict[str, Any]:
    """Say what a bundle is, from its manifest alone, and who signed it. Needs no PyTorch and no runtime.

    Files other than the manifest are not looked at: flamest-export verify does that.
    """
    import msgspec

    from ...runtime.bundle.manifest import read_manifest
    from ...runtime.bundle.opening import open_manifest
    from ...runtime.bundle.signature import read_trusted_keys

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


@command
def verify(
    bundle: BundleArgument,
    blip: BlipOption = None,
    clip: ClipOption = None,
    slow: SlowOption = None,
    i3d: I3dOption = None,
    resnet3d: Resnet3dOption = None,
    videomae: VideomaeOption = None,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Check every file of a bundle against its manifest, then compare its graphs with PyTorch again.

    The comparison needs the weights: those of random:* sources are made again, published ones are
    taken from this machine's caches or the network, others are given as they were for the export.
    """
    import msgspec

    from ...base.progress import progress_bar
    from ...runtime.bundle.records import Parity
    from ...runtime.bundle.signature import read_trusted_keys
    from ..libraries import quiet_libraries, torch_threads
    from ..parity.verification import PHASES, verify_bundle

    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")

    named = {"blip": blip, "clip": clip, "slow": slow, "i3d": i3d, "resnet3d": resnet3d, "videomae": videomae}
    given = {name: source for name, source in named.items() if source is not None}
    with progress_bar("verifying", PHASES, unit="steps") as progress, quiet_libraries(), torch_threads(threads):
        done = verify_bundle(bundle, progress, given=given, threads=threads, trusted=trusted)
    if not as_json:
        print(f"{bundle}: {len(done.manifest.files)} files are those of the manifest")
        print(f"  signatures    {show_signers(done.signers, trusted)}")
        show_parity(Parity(done.graphs, done.captions_equal, done.captions, done.chain))
        for part, advice in done.not_compared.items():
            print(f"{part}: not compared with PyTorch, its weights are not at hand. Give them: {advice}")
    return {
        "bundle": str(bundle),
        "fingerprint": done.manifest.fingerprint,
        "files": len(done.manifest.files),
        **signer_ids(done.signers, trusted),
        "parity": parity_rows(done.graphs),
        "captions_equal": done.captions_equal == done.captions if done.captions else None,
        "chain": msgspec.to_builtins(done.chain),
        "not_compared": done.not_compared,
        "seconds": round(done.seconds, 1),
    }
