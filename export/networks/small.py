"""Small relatives of the six networks of Table 1, for the mini-world: same classes, few channels.

A full-sized network cannot be trained where the mini-world is rendered. These have the parts, tensor
names and forward passes of the real ones (Hugging Face's BLIP, CLIP and VideoMAE, PyTorchVideo's
Slow and I3D, torchvision's VideoResNet), and are trained by ``flamest.experiments.pretraining``.
``export/weights/miniworld/`` holds the weights: ``blip/`` as a hub folder, the others as one file each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra
from ..weights.vocabulary import CLS, PAD, SEP, SMALL_DEC, SMALL_SIZE
from .reference import VideoForm
from .slow_i3d import Stage, bottleneck_net

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "miniworld"
BLIP_FOLDER = WEIGHTS / "blip"
CLIP_CAPTIONS = WEIGHTS / "clip-captions.json"  # {class: caption}, written beforehand (docs/paper.md, reading 10)
MOTION_CLASSES = 5  # that the four video networks are trained on


SMALL_FORMS: dict[str, VideoForm] = {
    "blip": VideoForm(frames=1, crop=96, width=128, keyframe_size=64),
    "clip": VideoForm(frames=1, crop=96, width=256, keyframe_size=64),  # image vector and caption vector, 128 each
    "slow": VideoForm(frames=8, crop=64, width=256, keyframe_size=64),
    "i3d": VideoForm(frames=8, crop=64, width=256, keyframe_size=64),
    "resnet3d": VideoForm(frames=3, crop=64, width=128, keyframe_size=64),
    "videomae": VideoForm(frames=16, crop=64, width=128, keyframe_size=64),
}


SMALL_BLIP_CONFIG: dict[str, Any] = {
    "model_type": "blip",
    "architectures": ["BlipForConditionalGeneration"],
    "projection_dim": 128,
    "image_text_hidden_size": 64,
    "text_config": {
        "model_type": "blip_text_model",
        "vocab_size": SMALL_SIZE,
        "hidden_size": 128,
        "encoder_hidden_size": 128,
        "intermediate_size": 512,
        "projection_dim": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,  # of 64, as in every published BLIP
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "label_smoothing": 0.0,
        "bos_token_id": SMALL_DEC,
        "eos_token_id": SEP,
        "sep_token_id": SEP,
        "cls_token_id": CLS,
        "pad_token_id": PAD,
    },
    "vision_config": {
        "model_type": "blip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "projection_dim": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 12,
        "initializer_range": 0.02,  # the library's own 1e-10 would never learn
    },
}

SMALL_CLIP_CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 128,
    "text_config": {
        "vocab_size": SMALL_SIZE,
        "hidden_size": 128,
        "intermediate_size": 512,
        "projection_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": CLS,
        "eos_token_id": SEP,  # the text vector is read there
        "pad_token_id": PAD,
    },
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "projection_dim": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 96,
        "patch_size": 12,
    },
}


def build_small_blip() -> nn.Module:
    """``BlipForConditionalGeneration`` of ``SMALL_BLIP_CONFIG`` with the library's initial weights."""
    transformers = _transformers()
    config = transformers.BlipConfig(**SMALL_BLIP_CONFIG)
    return transformers.BlipForConditionalGeneration._from_config(config, attn_implementation="eager")  # type: ignore[no-any-return]


def build_small_clip() -> nn.Module:
    """``CLIPModel`` of ``SMALL_CLIP_CONFIG``; its tokens are ``small_tokenizer``'s, [CLS] … [SEP]."""
    transformers = _transformers()
    config = transformers.CLIPConfig(**SMALL_CLIP_CONFIG)
    return transformers.CLIPModel._from_config(config, attn_implementation="eager")  # type: ignore[no-any-return]


def build_small_videomae() -> nn.Module:
    """``VideoMAEForVideoClassification``: 16 frames of 64 px, patches of 2 x 16 x 16, 4 layers of 128."""
    transformers = _transformers()
    config = transformers.VideoMAEConfig(
        image_size=64,
        patch_size=16,
        num_frames=16,
        tubelet_size=2,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        decoder_num_attention_heads=4,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=1,
        decoder_intermediate_size=256,
        num_labels=MOTION_CLASSES,
        use_mean_pooling=True,
    )
    return transformers.VideoMAEForVideoClassification._from_config(config, attn_implementation="eager")  # type: ignore[no-any-return]


def build_small_slow() -> nn.Module:
    """``slow_r50``'s blocks, narrow: stem, res2 and res3 see one frame at a time, res4 and res5 three.

    8 frames of 64 px; the head pools 4 x 4 positions by 3 x 3 windows, as ``slow_r50`` 8 x 8 by 7 x 7.
    """
    stages = (
        Stage(12, 12, 32, spans=(1,), stride=1),
        Stage(32, 16, 64, spans=(1,), stride=2),
        Stage(64, 32, 128, spans=(3, 3), stride=1),
        Stage(128, 64, 256, spans=(3, 3), stride=2),
    )
    return bottleneck_net(stages, stem_span=1, window=(8, 3, 3), classes=MOTION_CLASSES)


def build_small_i3d() -> nn.Module:
    """``i3d_r50``'s blocks, narrow: the stem spans five frames, stages one or three; res2 is pooled in time."""
    stages = (
        Stage(12, 12, 32, spans=(3,), stride=1),
        Stage(32, 16, 64, spans=(3, 1), stride=2),
        Stage(64, 32, 128, spans=(3, 1), stride=1),
        Stage(128, 64, 256, spans=(1, 3), stride=2),
    )
    return bottleneck_net(stages, stem_span=5, window=(4, 3, 3), classes=MOTION_CLASSES, pool_after_first=True)


def build_small_resnet3d() -> nn.Module:
    """torchvision's ``VideoResNet`` of basic blocks, one per stage, 16 to 128 channels (``r3d_18``: 64 to 512)."""
    try:
        from torch import nn
        from torchvision.models.video.resnet import BasicBlock, Conv3DSimple, VideoResNet
    except ImportError as error:
        raise MissingExtra(error.name or "torchvision", extra="export") from error

    class SmallVideoResNet(VideoResNet):  # type: ignore[misc]
        """The library fixes its channels; only this call is given others."""

        def _make_layer(self, block: Any, conv: Any, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
            self.inplanes: int = 16 if planes == 64 else self.inplanes  # channels of the stem
            return super()._make_layer(block, conv, planes // 4, blocks, stride)  # type: ignore[no-any-return]

    def stem() -> nn.Sequential:
        layer = nn.Conv3d(3, 16, kernel_size=(3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        return nn.Sequential(layer, nn.BatchNorm3d(16), nn.ReLU(inplace=True))

    net: Any = SmallVideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], stem)
    net.fc = nn.Linear(128, MOTION_CLASSES)
    return net  # type: ignore[no-any-return]


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "blip": build_small_blip,
    "clip": build_small_clip,
    "slow": build_small_slow,
    "i3d": build_small_i3d,
    "resnet3d": build_small_resnet3d,
    "videomae": build_small_videomae,
}


def weights_file(name: str, folder: Path = WEIGHTS) -> Path:
    """Path of the trained weights of that network of ``SMALL_FORMS``, whether they are there or not."""
    return folder / "blip" / "model.safetensors" if name == "blip" else folder / f"{name}.safetensors"


def load_small(name: str, folder: Path = WEIGHTS) -> nn.Module:
    """The trained small network of that name as fp32, in evaluation mode.

    Raises DataError: ``untrained`` when its file is not there, otherwise naming the tensors that do
    not fit; MissingExtra without the packages of ``flamest[export]``.
    """
    from ..weights.checkpoints import check_tensors, load_checkpoint_tensors
    from ..weights.hub_folder import fill_blip

    path = weights_file(name, folder)
    if not path.is_file():
        raise DataError(
            f"the mini-world's '{name}' is not trained: {path.name} is missing from {path.parent.name}/",
            fix=f"python -m flamest.experiments.pretraining {name}",
            code="untrained",
        )
    tensors = {
        key: value.float() if value.is_floating_point() else value
        for key, value in load_checkpoint_tensors(path).items()
    }
    net: Any = BUILDERS[name]()
    if name == "blip":
        fill_blip(net, tensors, file=path)
    else:
        check_tensors(tensors, net.state_dict(), file=path, what=f"the small '{name}'")
        net.load_state_dict(tensors, strict=True)
    return net.eval()  # type: ignore[no-any-return]


def _transformers() -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", extra="export") from error
    return transformers
