"""``flamest-export verify``: every file against the manifest, then every graph against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.options import JsonOption, ThreadsOption, TrustedKeyOption, takes_records
from ..source_options import SourceOptions
from .options import BundleArgument
from .output import parity_rows, show_parity, show_signers, signer_ids

EncoderOption = Annotated[
    Path | None,
    typer.Option(
        "--extractor",
        metavar="FILE.toml",
        help="The TOML file of an encoder of your own that the bundle was exported with. Its code runs here.",
    ),
]


@command
@takes_records
def verify(
    bundle: BundleArgument,
    sources: SourceOptions,
    extractor: EncoderOption = None,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Check every file of a bundle against its manifest, then compare its graphs with PyTorch.

    The comparison needs the weights: those of random:* sources are generated again, published ones are
    taken from this machine's caches or the network, others must be given as for the export. So must an
    encoder of one's own: a bundle names code, and never makes it run.
    """
    import msgspec

    from ...base.progress import progress_bar
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.bundle.signature import read_trusted_keys
    from ..encoder.settings import read_encoder
    from ..networks.reference import quiet_libraries, torch_threads
    from ..parity.verification import PHASES, verify_bundle
    from ..weights.source import parse_source

    bundle = resolve_bundle(bundle)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    encoder = None if extractor is None else read_encoder(extractor)
    given = {network: parse_source(network, text) for network, text in sources.given().items()}
    with progress_bar("verifying", PHASES, unit="steps") as progress, quiet_libraries(), torch_threads(threads):
        done = verify_bundle(bundle, progress, given=given, encoder=encoder, threads=threads, trusted=trusted)
    if not as_json:
        print(f"{bundle}: {len(done.manifest.files)} files are those of the manifest")
        print(f"  signatures    {show_signers(done.signers, trusted)}")
        show_parity(done.parity)
        for part, advice in done.not_compared.items():
            print(f"{part}: not compared with PyTorch, its weights are not on this machine. Give them: {advice}")
    return {
        "bundle": str(bundle),
        "fingerprint": done.manifest.fingerprint,
        "files": len(done.manifest.files),
        **signer_ids(done.signers, trusted),
        "parity": parity_rows(done.parity.graphs),
        "captions_equal": done.parity.captions_equal == done.parity.captions if done.parity.captions else None,
        "chain": msgspec.to_builtins(done.parity.chain),
        "not_compared": done.not_compared,
        "seconds": round(done.seconds, 1),
    }
