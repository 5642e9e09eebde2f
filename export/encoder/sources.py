"""The module of an encoder, from where its settings say; its weights, and the record of both.

A module's code runs here, on the exporting machine, and nowhere else. Weights files are read as safetensors, or with
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, FlamestError, MissingExtra, SettingsError, UnreachableError
from ...base.files import printable_path, read_regular
from ..weights.checkpoints import check_tensors, load_checkpoint
from ..weights.hub import fetch_folder
from ..weights.releases import LICENCE_UNKNOWN, licence_of
from ..weights.source import WeightSource, split_hub_id
from .settings import GUIDE, Encoder

if TYPE_CHECKING:
    from torch import nn

MAX_SOURCE = 16 << 20  # bytes of a file with code
TO_BRING = "config.json and model.safetensors"
_BATCH_COUNT = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class FoundModule:
    """A module with its weights, and its origin."""

    net: nn.Module
    source: str  # for EncoderRecord: no path of this machine
    source_sha256: str
    name: str  # for the manifest's sources
    revision: str
    licence: str


def find_module(encoder: Encoder) -> FoundModule:
    """Make the encoder's module in float32 and evaluation mode, with its weights.

    Raises DataError ``encoder_module`` for code that fails or returns something else, ``wrong_checkpoint`` for weights
    that do not fit, SettingsError, MissingExtra for a package that is not installed, UnreachableError without network.
    """
    found = _hub(encoder) if encoder.hub else _timm(encoder) if encoder.timm else _own(encoder)
    net, revision = found.net, found.revision
    if encoder.weights is not None:
        revision = _fill(net, encoder)
    licence = encoder.licence or found.licence
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return FoundModule(net.float().cpu().eval(), found.source, found.source_sha256, found.name, revision, licence)


def called_part(net: nn.Module, part: str) -> nn.Module:
    """The part of ``net`` that is called. Raises DataError ``encoder_module`` where there is no such part."""
    if not part:
        return net
    try:
        return net.get_submodule(part)
    except AttributeError as error:
        known = ", ".join(name for name, _ in net.named_children())
        raise DataError(
            f'part = "{part}": {type(net).__name__} has no such part, its parts are {known}',
            fix="name one of them, or leave part out to call the module itself",
            code="encoder_module",
        ) from error


def _own(encoder: Encoder) -> FoundModule:
    if not isinstance(encoder.module, str):
        return _in_python(encoder)
    place, _, name = encoder.module.rpartition(":")
    file = Path(place) if place.endswith(".py") else None
    code = _from_file(file) if file is not None else _imported(place)
    function = getattr(code, name, None)
    if not callable(function):
        raise DataError(
            f"module = '{encoder.module}': no function '{name}' in it",
            fix=f"define it: def {name}() -> torch.nn.Module",
            code="encoder_module",
        )
    net = _made(lambda: function(**encoder.arguments), encoder.module)
    shown = f"file {file.name}:{name}" if file is not None else f"module {encoder.module}"
    source = file if file is not None else Path(str(getattr(code, "__file__", "") or ""))
    return FoundModule(net, shown, _hash(source), encoder.name, "as its module comes", LICENCE_UNKNOWN)


def _in_python(encoder: Encoder) -> FoundModule:
    """A module, or a function that returns one, that was given in Python."""
    from torch import nn

    given = encoder.module
    if not callable(given):
        raise SettingsError(
            f"module is {type(given).__name__}, expected a torch.nn.Module, a function that returns one, or a text",
            fix=GUIDE,
            code="bad_encoder",
        )
    net = given if isinstance(given, nn.Module) else _made(lambda: given(**encoder.arguments), "module")
    kind = type(given) if isinstance(given, nn.Module) else given
    shown = f"python {kind.__module__}.{kind.__qualname__}"
    try:
        file = Path(inspect.getsourcefile(kind) or "")
    except TypeError:
        file = Path()
    return FoundModule(net, shown, _hash(file), encoder.name, "as its module comes", LICENCE_UNKNOWN)


def _from_file(file: Path) -> Any:
    """Run a Python file, whose folder it may import from."""
    if not file.is_file():
        raise DataError(
            f"{printable_path(file)}: no such file",
            fix="module = 'FILE.py:FUNCTION', next to the TOML",
            code="encoder_module",
        )
    spec = importlib.util.spec_from_file_location(f"flamest_encoder_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.absolute()))
    try:
        _run(lambda: spec.loader.exec_module(code), printable_path(file))  # type: ignore[union-attr]
    finally:
        sys.path.remove(str(file.parent.absolute()))
    return code


def _imported(name: str) -> Any:
    return _run(lambda: importlib.import_module(name), name)


def _made(make: Callable[[], Any], shown: str) -> nn.Module:
    from torch import nn

    net = _run(make, shown)
    if not isinstance(net, nn.Module):
        raise DataError(
            f"module = '{shown}' returned {type(net).__name__}, expected a torch.nn.Module",
            fix="return the module itself from the function",
            code="encoder_module",
        )
    return net


def _run(code: Callable[[], Any], shown: str) -> Any:
    """Run code of an encoder; whatever it raises is reported with its name."""
    try:
        return code()
    except ModuleNotFoundError as error:
        raise DataError(
            f"{shown} needs the package '{error.name}', which is not installed here",
            fix=f"pip install the package of '{error.name}' on this machine; silos do not need it",
            code="missing_package",
        ) from error
    except FlamestError:
        raise
    except Exception as error:
        raise DataError(
            f"{shown} raised {type(error).__name__}: {error}",
            fix="run it by itself in Python until it returns the module",
            code="encoder_module",
        ) from error


def _hub(encoder: Encoder) -> FoundModule:
    """A model of the Hugging Face hub or its folder, by transformers' own classes: no repository's code is run."""
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", extra="export") from error
    local = Path(encoder.hub).is_dir()
    if not local and split_hub_id(encoder.hub) is None:
        raise SettingsError(
            f"hub = '{encoder.hub}': expected OWNER/MODEL[@REVISION], or a folder", fix=GUIDE, code="bad_encoder"
        )
    folder, revision = Path(encoder.hub), "local files"
    if not local:
        try:
            folder, revision = fetch_folder(WeightSource("encoder", "hub", encoder.hub), to_bring=TO_BRING)
        except UnreachableError as error:
            fix = f"bring {TO_BRING} of '{encoder.hub}' into a folder, then write hub = 'FOLDER' into the TOML"
            raise UnreachableError(error.message, fix=fix, code=error.code) from error

    def load() -> Any:
        return AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",
            output_loading_info=True,
        )

    net, info = _run(load, f"hub = '{encoder.hub}'")
    called = called_part(net, encoder.part)
    names = {f"{encoder.part}." * bool(encoder.part) + name for name in called.state_dict()}
    if missing := sorted(names & set(info["missing_keys"])):
        raise DataError(
            f"hub = '{encoder.hub}': {len(missing)} tensors have no weights: {', '.join(missing[:3])}",
            fix="take another model, or name the part that has weights: part = 'vision_model'",
            code="wrong_checkpoint",
        )
    name = folder.name if local else encoder.hub
    return FoundModule(net, f"hub {type(net).__name__}", "", name, revision, licence_of(encoder.hub))


def _timm(encoder: Encoder) -> FoundModule:
    """A model of timm without its classifier. Weights are timm's own, unless a file is given."""
    try:
        import timm  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise DataError(
            f"timm = '{encoder.timm}': the package timm is not installed here",
            fix="pip install timm on this machine; silos do not need it",
            code="missing_package",
        ) from error
    pretrained = encoder.weights is None
    net = _made(
        lambda: timm.create_model(encoder.timm, pretrained=pretrained, **{"num_classes": 0, **encoder.arguments}),
        encoder.timm,
    )
    return FoundModule(net, f"timm {encoder.timm}", "", encoder.timm, f"timm {timm.__version__}", LICENCE_UNKNOWN)


def _fill(net: nn.Module, encoder: Encoder) -> str:
    """Set every weight of ``net`` from the encoder's file; return its revision for the manifest."""
    file = encoder.weights
    assert file is not None
    checkpoint = load_checkpoint(file, sha256=encoder.sha256)
    expected = net.state_dict()
    counts = {name: value for name, value in expected.items() if name.endswith(_BATCH_COUNT)}
    tensors = {**counts, **checkpoint.tensors}
    check_tensors(tensors, expected, file=file, what=f"encoder '{encoder.name}'")
    net.load_state_dict(tensors, strict=True)
    return f"{file.name}, file SHA-256 {checkpoint.sha256}"


def _hash(file: Path) -> str:
    """SHA-256 of a file with code; empty where there is none, as in a notebook."""
    return hashlib.sha256(read_regular(file, largest=MAX_SOURCE)).hexdigest() if file.is_file() else ""
