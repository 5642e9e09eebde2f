"""``flamest-export check``: the checks of a bundle's graphs that need neither PyTorch nor a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...base.console import command
from ...base.options import JsonOption, TrustedKeyOption
from .options import BundleArgument

if TYPE_CHECKING:
    from ..checks import CheckResult


@command
def check(bundle: BundleArgument, trusted_key: TrustedKeyOption = None, as_json: JsonOption = False) -> dict[str, Any]:
    """Check a bundle's graphs without PyTorch, a runtime or a GPU, and whether TensorRT's parser accepts them.

    Per graph: no tensor is in another file; ONNX's checker, full; strict shape inference; tensors
    and axes are the manifest's; the dtype histogram of the file is the manifest's and fits the
    precision; every operator, with its element types, is one that TensorRT's parser accepts from
    10.3 to 11 (our own list). A check that fails ends in exit code 65.
    """
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.bundle.signature import read_trusted_keys
    from ..checks import check_bundle, raise_for_failures

    bundle = resolve_bundle(bundle)
    results = check_bundle(bundle, read_trusted_keys(trusted_key or (), where="--trusted-key"))
    if not as_json:
        show_results(results)
    raise_for_failures(results, bundle)
    return {"bundle": str(bundle), "checks": result_rows(results)}


def show_results(results: tuple[CheckResult, ...]) -> None:
    for result in results:
        word = "remark" if result.remark and result.problems else "ok    " if result.ok else "FAILED"
        print(f"{word} {result.graph}: {result.check}")
        for problem in result.problems:
            print(f"         {problem}")


def result_rows(results: tuple[CheckResult, ...]) -> list[dict[str, Any]]:
    return [
        {
            "graph": result.graph,
            "check": result.check,
            "ok": result.ok,
            "remark": result.remark and bool(result.problems),
            "problems": list(result.problems),
        }
        for result in results
    ]
