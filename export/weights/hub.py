"""A model's files from the Hugging Face hub, or from its cache on this machine."""

from __future__ import annotations

from pathlib import Path

from ...base.errors import MissingExtra, UnreachableError
from .releases import pinned_revision
from .source import WeightSource

_WANTED = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "preprocessor_config.json")


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """The snapshot of ``repository`` in this machine's cache, at ``revision`` or the pinned one; no network."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("huggingface_hub", extra="export") from error
    revision = revision or pinned_revision(repository)
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return None


def fetch_folder(source: WeightSource, *, to_bring: str) -> tuple[Path, str]:
    """(folder, commit) of a hub id, at its revision, the one that releases.py pins, or its main branch.

    Raises UnreachableError that names the files ``to_bring`` and the command to type then.
    """
    try:
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise MissingExtra("huggingface_hub", extra="export") from error
    repository, revision = source.hub_id
    revision = revision or pinned_revision(repository)
    try:
        folder = Path(_download(repository, revision, _WANTED))
        if not (folder / "model.safetensors").is_file():
            folder = Path(_download(repository, revision, ("pytorch_model.bin",)))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        short = repository.rpartition("/")[2]
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreachableError(
            f"cannot fetch '{repository}' from the hub, and it is not in this machine's cache: {reason}",
            fix=f"where there is network, download {to_bring} of '{repository}' into a folder {short}, "
            f"bring it here, then type: flamest-export --backend onnx {source.option} ./{short} --out DIR",
        ) from error
    return folder, f"commit {folder.name}"


def _download(repository: str, revision: str | None, files: tuple[str, ...]) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(repository, revision=revision, allow_patterns=list(files)))


def local_or_hub(source: WeightSource, *, to_bring: str) -> tuple[Path, str]:
    """(folder or weights file, revision) of a source of kind ``files`` or ``hub``."""
    if source.kind == "files":
        return source.path, "local files"
    return fetch_folder(source, to_bring=to_bring)
