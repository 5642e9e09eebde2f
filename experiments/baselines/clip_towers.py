"""CLIP's two towers for ActionCLIP, loaded from the mini-world or a folder, and the fusion over frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...base.errors import DataError, MissingExtra, UsageError
from ...export.networks.small import build_small_clip, load_small
from ...export.weights.tokenizer import small_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Fusion = Literal["mean", "transformer"]
FILES = ("config.json", "model.safetensors", "tokenizer.json")
MAX_SCALE = 100.0  # of the similarities, as in CLIP's training


@dataclass(frozen=True, eq=False)
class ClipTowers:
    """A CLIP model to fine-tune, with the origin of its weights."""

    net: Any  # transformers.CLIPModel
    tokenizer: Any  # tokenizers.Tokenizer
    image_size: int  # pixels
    origin: str  # of the weights, for the result


def load_towers(source: str, *, seed: int) -> ClipTowers:
    """Load ``miniworld`` (the trained small CLIP), ``random`` (the same, untrained), or a local folder.

    The folder has the hub's layout (``openai/clip-vit-base-patch32``): config.json, model.safetensors,
    tokenizer.json. Raises DataError (``untrained`` when the small CLIP has no weights), UsageError when
    files are missing in the folder, MissingExtra.
    """
    try:
        import tokenizers
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "torch", extra="export") from error

    if source in ("miniworld", "random"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net: Any = load_small("clip") if source == "miniworld" else build_small_clip()
        tokenizer = tokenizers.Tokenizer.from_str(small_tokenizer().decode())
        origin = "the mini-world's small CLIP" if source == "miniworld" else "random: the small CLIP, untrained"
    else:
        net = _from_folder(Path(source))
        tokenizer = tokenizers.Tokenizer.from_file(str(Path(source) / "tokenizer.json"))
        origin = f"folder {Path(source).name}"
    length = int(net.config.text_config.max_position_embeddings)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=int(net.config.text_config.pad_token_id or 0))
    return ClipTowers(net, tokenizer, int(net.config.vision_config.image_size), origin)


def _from_folder(folder: Path) -> Any:
    import transformers

    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder} is not a folder of a CLIP model: {', '.join(missing)} missing",
            fix="download openai/clip-vit-base-patch32 into a folder and give it with --clip",
        )
    try:
        return transformers.CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{folder} cannot be read as a CLIP model: {str(error).splitlines()[0]}",
            fix="download the folder again, as the hub has it",
        ) from error


def build_video_text(towers: ClipTowers, fusion: Fusion, *, frames: int, seed: int) -> nn.Module:
    """ActionCLIP's network around the two towers.

    ``clips(pixels float32 [B, T, 3, S, S])`` and ``texts(sentences)`` return unit vectors float32 [B, D];
    ``scale()`` is the factor of similarities. ``mean`` averages the frames' vectors and adds no parameter.
    ``transformer`` adds to each frame's vector the output of a transformer over all frames in order (the
    authors' "Transf": 6 layers, heads of width 64).
    """
    import torch
    from torch import nn

    class VideoText(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = towers.net
            width = int(towers.net.config.projection_dim)
            self.order = nn.Parameter(0.01 * torch.randn(frames, width)) if fusion == "transformer" else None
            self.mixer = _mixer(width) if fusion == "transformer" else None

        def clips(self, pixels: Tensor) -> Tensor:
            pooled: Any = self.clip.vision_model(pixel_values=pixels.flatten(0, 1)).pooler_output
            frame_vectors: Tensor = self.clip.visual_projection(pooled).unflatten(0, pixels.shape[:2])
            if self.mixer is not None and self.order is not None:
                frame_vectors = frame_vectors + self.mixer(frame_vectors + self.order)
            return nn.functional.normalize(frame_vectors.mean(1), dim=-1)

        def texts(self, sentences: Sequence[str]) -> Tensor:
            encoded = towers.tokenizer.encode_batch(list(sentences))
            device: torch.device = self.clip.logit_scale.device
            ids = torch.tensor([one.ids for one in encoded], device=device)
            mask = torch.tensor([one.attention_mask for one in encoded], device=device)
            pooled: Any = self.clip.text_model(input_ids=ids, attention_mask=mask).pooler_output
            return nn.functional.normalize(self.clip.text_projection(pooled), dim=-1)

        def scale(self) -> Tensor:
            value: Tensor = self.clip.logit_scale.exp().clamp(max=MAX_SCALE)
            return value

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VideoText()


def _mixer(width: int) -> nn.Module:
    from torch import nn

    layer = nn.TransformerEncoderLayer(
        width, max(1, width // 64), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
