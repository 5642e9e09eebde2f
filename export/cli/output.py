"""Output of ``flamest-export`` for people, and rows that several commands give with ``--json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.console import say
from ..weights.releases import licence_warning

if TYPE_CHECKING:
    from ...runtime.bundle.graph_records import ChainParity, Graph, GraphParity, Int8Arithmetic, Parity
    from ...runtime.bundle.manifest import Manifest
    from ...runtime.bundle.signature import PublicKey


def show_notes(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def show_parity(parity: Parity) -> None:
    for name, graph in parity.graphs.items():
        say(
            f"  {name}: largest relative error against PyTorch {graph.max_rel:.1e}, smallest cosine "
            f"{graph.min_cosine:.6f} ({graph.ran_on})"
        )
    if parity.captions:
        say(f"  captions: {parity.captions_equal} of {parity.captions} equal to PyTorch's")
    if parity.chain is not None:
        show_chain(parity.chain)


def show_int8(manifest: Manifest) -> None:
    for name, graph in manifest.graphs.items():
        if graph.int8 is not None:
            say(f"  {name}: {int8_line(graph.int8)}")
    if (share := int8_share(manifest)) is not None:
        say(f"  int8 graphs together: {share:.1%} of all multiply-adds in int8")


def int8_share(manifest: Manifest) -> float | None:
    """int8's share of all multiply-adds of the graphs that are int8; None without any."""
    figures = [graph.int8 for graph in manifest.graphs.values() if graph.int8 is not None]
    total = sum(each.multiply_adds for each in figures)
    return sum(each.share_of_all * each.multiply_adds for each in figures) / total if total else None


def int8_line(int8: Int8Arithmetic) -> str:
    """Share of int8, what stays wide, and the cosine on clips that were held out, with the aim where it is below."""
    from ..precision.trial import TARGET

    kept = (
        f"{len(int8.kept)} products stay wide ({', '.join(int8.kept)})" if int8.kept else "no product has to stay wide"
    )
    missed = f"; the aim of {TARGET:g} was not reached" if int8.held_out_cosine < TARGET else ""
    return (
        f"int8 in {int8.share:.1%} of the multiply-adds with a weight ({int8.share_of_all:.1%} of all), {kept}; cosine "
        f"to fp32 at least {int8.held_out_cosine:.5f} on {int8.held_out_clips} clips that were held out{missed}"
    )


def show_chain(chain: ChainParity) -> None:
    for name, cosine in chain.embeddings.items():
        say(
            f"  whole chain, {name} with the fp32 caption: cosine to fp32 at least {cosine.smallest:.6f}, "
            f"mean {cosine.mean:.6f}, {chain.clips} clips"
        )
    if chain.captions:
        say(f"  whole chain, captions: {chain.captions_equal} of {chain.captions} equal to fp32's")


def show_signers(signers: Sequence[PublicKey] | None, trusted: Sequence[PublicKey]) -> str:
    """The signers as text, named where they are among the ``trusted`` keys; None: signatures cannot be checked here."""
    if signers is None:
        return "not checked: pip install cryptography"
    if not signers:
        return "none"
    remark = "" if trusted else "; not checked against a trusted key (--trusted-key NAME.pub)"
    return ", ".join(map(str, signers)) + remark


def signer_ids(signers: Sequence[PublicKey] | None, trusted: Sequence[PublicKey]) -> dict[str, Any]:
    """The signers, and those of them that are among the ``trusted`` keys, for ``--json``."""
    if signers is None:
        return {"signed_by": None, "trusted": []}
    asked = {key.raw for key in trusted}
    return {
        "signed_by": [signer.id for signer in signers],
        "trusted": [signer.id for signer in signers if signer.raw in asked],
    }


def show_manifest(
    bundle: Path, manifest: Manifest, signers: Sequence[PublicKey] | None, trusted: Sequence[PublicKey]
) -> None:
    from ...runtime.bundle.encoder_record import EncoderRecord

    say(f"{bundle}: {manifest.extractor}, {manifest.precision}, {manifest.backend}, made {manifest.created}")
    say(f"  fingerprint   {manifest.fingerprint}")
    say(f"  signatures    {show_signers(signers, trusted)}")
    say(f"  features      {_widths(manifest)} dimensions per clip")
    for line in _vlm_lines(manifest):
        say(line)
    for cnn in manifest.spatio_temporal.values():
        say(f"  frames        {cnn.frames} of {cnn.preprocessing.size} px into {cnn.network}, {cnn.choice}")
        if isinstance(cnn.encoder, EncoderRecord):
            say(f"                {cnn.encoder.source}, code {cnn.encoder.source_sha256[:16] or 'of a package'}")
            say(f"                {cnn.encoder.kind} encoder: {cnn.pooling}")
    rule = manifest.keyframes
    if manifest.has_keyframes:
        say(f"  keyframes     {rule.count} of {rule.candidates} at {rule.preprocessing.size} px ({rule.space})")
    for part, source in manifest.sources.items():
        say(f"  {part:13} {source.name} ({source.revision}), licence: {source.licence}")
        if warning := licence_warning(part, source.licence):
            say(f"                WARNING: {warning}")
        say(f"                {source.parameters:,} parameters as the paper counts, {source.parameters_tied:,} stored")
    for name, graph in manifest.graphs.items():
        size, parity = manifest.files[graph.file].bytes / 1e6, manifest.parity.graphs[name]
        say(
            f"  {name:13} {graph.file}, {size:.1f} MB, {graph.precision}, "
            f"error {parity.max_rel:.1e}, cosine {parity.min_cosine:.6f} "
            f"({parity.ran_on})"
        )
        say(f"                {_interface(graph)}")
        for kind, operators in graph.dtype_histogram.items():
            say(f"                {kind}: {', '.join(f'{count} {name}' for name, count in operators.items())}")
        if graph.int8 is not None:
            say(f"                {int8_line(graph.int8)}")
        for engine in graph.engines:
            where = f"TensorRT {engine.tensorrt}, {engine.gpu} ({engine.compute_capability})"
            options = " ".join(engine.options.flags()) or "default options"
            say(f"                engine for {where}, {options}, {manifest.files[engine.file].bytes / 1e6:.1f} MB")
    if manifest.calibration is not None:
        say(f"  calibration   {manifest.calibration.clips} clips, {manifest.calibration.source}")
    if manifest.parity.chain is not None:
        show_chain(manifest.parity.chain)
    if (share := int8_share(manifest)) is not None:
        say(f"  int8          {share:.1%} of all multiply-adds of the int8 graphs")
    for note in manifest.notes:
        say(f"  note          {note}")
    say("  built with    " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))


def _interface(graph: Graph) -> str:
    """Inputs of a graph, the keys and values of all layers as one, and its optimisation profiles."""
    kinds = {tensor.name.rstrip("0123456789_"): tensor.dtype for tensor in graph.inputs}
    taken = "takes " + ", ".join(f"{name} {dtype}" for name, dtype in kinds.items())
    return f"{taken}; profiles: {', '.join(use.name for use in graph.uses)}" if graph.uses else taken


def _widths(manifest: Manifest) -> str:
    vlm = [] if manifest.vlm is None else [manifest.vlm.width]
    widths = vlm + [part.width for part in manifest.spatio_temporal.values()]
    return str(widths[0]) if len(widths) == 1 else f"{' + '.join(map(str, widths))} = {manifest.width}"


def _vlm_lines(manifest: Manifest) -> list[str]:
    from ...runtime.bundle.manifest import RetrievedCaption

    if manifest.vlm is None:
        return []
    if isinstance(manifest.vlm, RetrievedCaption):
        how = f"the nearest of {len(manifest.vlm.captions)} captions"
    else:
        how = manifest.vlm.attention_mode
    frames = manifest.vlm.captioned_frames
    several = f", {frames} keyframes averaged" if frames > 1 else ""
    return [f"  attention     {how}, extraction seed {manifest.extraction_seed}{several}"]


def parity_rows(graphs: Mapping[str, GraphParity]) -> dict[str, dict[str, float]]:
    return {
        name: {"max_abs": graph.max_abs, "max_rel": graph.max_rel, "min_cosine": graph.min_cosine}
        for name, graph in graphs.items()
    }
