"""The command ``doctor``: what this machine can run, and how to fix what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, say
from ...base.errors import UsageError
from ...base.findings import Finding, show_findings
from ...base.options import JsonOption
from . import AGENT, SETTINGS_FILE, ConfigOption, DirOption
from .backend_options import BackendOption, DoctorPrecisionOption, RequireOption

if TYPE_CHECKING:
    from ...runtime.backends.machine import MachineFacts
    from ...runtime.backends.options import BackendOptions
    from ...runtime.backends.ranking import Candidate

# Packages that extraction, training and the daemon import, by the name of the distribution.
PACKAGES = ("apsw", "av", "grpcio", "onnx", "onnxruntime", "pillow", "scikit-learn", "tokenizers")
SUBSTITUTES = {"onnxruntime": "onnxruntime-gpu"}


@dataclass(frozen=True)
class Package:
    name: str
    version: str  # empty when it is missing
    fix: str


@command
def doctor(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Check the networks of this bundle.")] = None,
    backend: BackendOption = None,
    require_backend: RequireOption = False,
    precision: DoctorPrecisionOption = None,
    config: ConfigOption = None,
    folder: DirOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show where this machine can run the networks and what is wrong with this silo, and how to fix it.

    First where it would run; then every backend from the best to the one that is always there, each with ok or
    the reason why not. What is marked optional is not needed: the network runs without. The process that
    decodes videos is started once, to see that it runs. Nothing is changed, and no video is touched. With
    --bundle each network of it is checked: its precision, and if its TensorRT engines fit this machine.

    Next to agent.toml, settings, certificate, key, bundle and videos are checked too, and if the coordinator answers.
    """
    import msgspec

    from ...runtime.backends.machine import gather_facts
    from ...runtime.backends.options import parse_backend_options
    from ...runtime.backends.report import candidate_rows, machine_row, rank_graphs
    from ...runtime.bundle.manifest_reading import read_manifest
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.video.decoder_start import decoder_problem

    backend_options = parse_backend_options(backend or (), require=require_backend, precision=precision)
    if backend_options.autotune:
        raise UsageError(
            "--precision auto: doctor measures nothing, expected bf16 or no --precision",
            fix="flamest-agent extract --precision auto measures, and prints its choice",
        )
    manifest = None if bundle is None else read_manifest(resolve_bundle(bundle))
    facts = gather_facts()
    candidates = rank_graphs(facts, manifest, backend_options)
    packages = [find_package(name) for name in PACKAGES]
    decoder = decoder_problem()
    findings = _silo_findings(config, folder)
    if not as_json:
        _show_backends(facts, candidates, backend_options)
        _show_missing(packages, decoder)
        _show_silo(findings)
    return {
        "machine": machine_row(facts),
        "ladder": candidate_rows(candidates),
        "packages": msgspec.to_builtins(packages),
        "decoder": {"ok": not decoder, "problem": decoder},
        "silo": [vars(finding) for finding in findings],
        "ok": all(package.version for package in packages)
        and not decoder
        and all(finding.state != "wrong" for finding in findings)
        and all(any(candidate.unavailable is None for candidate in of) for of in candidates.values()),
    }


def _silo_findings(config: Path | None, folder: Path | None) -> list[Finding]:
    """Return the checks of the silo whose settings the options name, or are here; empty without settings."""
    if config is None and folder is None and not Path(SETTINGS_FILE).exists():
        return []
    from ..silo_doctor import examine_silo

    place = AGENT.place(config, folder)
    return [
        replace(found, fix=place.hint(found.fix), detail=place.hint(found.detail)) for found in examine_silo(place.path)
    ]


def _show_backends(
    facts: MachineFacts, candidates: Mapping[str, tuple[Candidate, ...]], options: BackendOptions
) -> None:
    from ...runtime.backends.report import candidate_lines, machine_lines, placement_lines

    placements = placement_lines(candidates, options)
    for line in (*placements, "", *machine_lines(facts), "", *candidate_lines(candidates)):
        say(line)


def _show_missing(packages: Sequence[Package], decoder: str) -> None:
    """Print packages that are not installed, and why the decoder does not run."""
    for package in packages:
        if not package.version:
            print(f"missing {package.name}\n    fix: {package.fix}")
    if decoder:
        say(decoder)
        say("    fix: pip install --force-reinstall --no-deps av, or what the line above asks for")


def _show_silo(findings: Sequence[Finding]) -> None:
    say("")
    if not findings:
        say(f"no {SETTINGS_FILE} here, so no silo's settings are checked: give its folder with --dir DIR")
    show_findings(findings)


def find_package(name: str) -> Package:
    """Find an installed package by its metadata, without importing it."""
    import importlib.metadata

    for distribution in (name, SUBSTITUTES.get(name, name)):
        try:
            return Package(name, importlib.metadata.version(distribution), "")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Package(name, "", "pip install 'flamest[agent]'")
