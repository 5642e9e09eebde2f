"""``flamest-export check``: the checks of a bundle's graphs that need neither PyTorch nor a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...base.console import command
from ...base.options import JsonOption, TrustedKeyOption
from .options import BundleArgument

if TYPE_CHECKING:
    from ..checks import Finding


@command
def check(bundle: BundleArgument, trusted_key: TrustedKeyOption = None, as_json: JsonOption = False) -> dict[str, Any]:
    """Check a bundle's graphs without PyTorch, a runtime or a GPU, and whether TensorRT's parser accepts them.

    Per graph: no tensor is in another file; ONNX's checker, full; strict shape inference; tensors
    and axes are the manifest's; the dtype histogram of the file is the manifest's and fits the
    precision; every operator, with its element types, is one that TensorRT's parser accepts from
    10.3 to 11 (our own list). A check that fails ends in exit code 65.
    """
    from ...runtime.bundle.signature import read_trusted_keys
    from ..checks import check_bundle, must_pass

    findings = check_bundle(bundle, read_trusted_keys(trusted_key or (), where="--trusted-key"))
    if not as_json:
        show_findings(findings)
    must_pass(findings, bundle)
    return {"bundle": str(bundle), "checks": finding_rows(findings)}


def show_findings(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        word = "remark" if finding.remark and finding.problems else "ok    " if finding.ok else "FAILED"
        print(f"{word} {finding.graph}: {finding.check}")
        for problem in finding.problems:
            print(f"         {problem}")


def finding_rows(findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
    return [
        {
            "graph": finding.graph,
            "check": finding.check,
            "ok": finding.ok,
            "remark": finding.remark and bool(finding.problems),
            "problems": list(finding.problems),
        }
        for finding in findings
    ]
