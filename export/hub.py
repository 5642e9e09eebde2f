"""A captioner's files from the Hugging Face hub, or from its cache on this machine."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import MissingExtra, UnreachableError
from .blip_checkpoint import FILES_TO_BRING

_WANTED = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "preprocessor_config.json")


def fetch_blip(repository: str, revision: str | None) -> tuple[Path, str]:
    """(folder, commit) of ``repository`` at ``revision`` (None: its main branch).

    Raises UnreachableError that names the files to bring and the command to type then.
    """
    try:
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise MissingExtra("huggingface_hub", extra="export") from error
    try:
        folder = Path(_download(repository, revision, _WANTED))
        if not (folder / "model.safetensors").is_file():
            folder = Path(_download(repository, revision, ("pytorch_model.bin",)))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        name = repository.rpartition("/")[2]
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreachableError(
            f"cannot fetch '{repository}' from the hub, and it is not in this machine's cache: {reason}",
            fix=f"where there is network, download {FILES_TO_BRING} of '{repository}' into a folder {name}, "
            f"bring it here, then type: flamest-export --backend onnx --blip ./{name} --out DIR",
        ) from error
    return folder, f"commit {folder.name}"


def _download(repository: str, revision: str | None, files: tuple[str, ...]) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
