"""Seeded weights of BLIP, CLIP and VideoMAE for ``random:*`` sources that mean something numerically.

The library's own initialisation proves nothing: BLIP's vision weights have a standard deviation of 1e-10, so its
output is about 4e-6 and every export "passes". Here attention is sharp enough to choose, embeddings are of
order 1 and differ between images, captions depend on the image, have a clear winner at each step, and end.

Draws come from NumPy's PCG64, one stream per tensor. What all inputs share is taken out of an embedding, and
the rest is brought to a standard deviation of 1, through the weights of the last norm: measured on seeded
clips in float64, and rounded, so that the same seed gives the same bytes on every machine.
random_convolutions.py does the other networks.
"""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..networks.blip import key_values, resumed
from ..networks.reference import VideoForm
from ..precision.calibration import calibration_clips
from .vocabulary import CLS, word_ids

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BlipForConditionalGeneration

ROUNDED_BITS = 14  # of the mantissa of measured values
SCORE_GAIN = 1.5  # of queries and of keys: attention scores have its square as standard deviation


def draw(name: str, seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal float32 values that depend on name and seed only."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(shape, dtype=np.float32)


def assign(target: Any, values: npt.NDArray[Any]) -> None:
    """Set a PyTorch tensor in place, as float32."""
    import torch

    with torch.no_grad():
        target.copy_(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(target.shape))


def rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Few mantissa bits: float64 noise of another machine's order of summing does not show."""
    mantissa, exponent = np.frexp(values)
    few = np.ldexp(np.round(np.ldexp(mantissa, ROUNDED_BITS)), exponent - ROUNDED_BITS)
    return np.asarray(few, dtype=np.float32)


SAMPLES = 6  # clips, images or captions that a norm is measured on,
DEEP, FEW = 4, 3  # and how many of them where there are more layers than that: each takes seconds
SAMPLE_WORDS = 5  # of a caption among the samples


def randomise_videomae(net: nn.Module, form: VideoForm, *, seed: int) -> None:
    """Set every weight of a pooling VideoMAE classifier from ``seed``."""
    import torch

    _draw_all(net, "videomae", seed)
    double: Any = copy.deepcopy(net).double()
    samples = SAMPLES if double.config.num_hidden_layers <= DEEP else FEW
    clips = calibration_clips(seed, clips=samples, frames=form.frames, size=form.crop, mean=0.45, std=0.225)
    with torch.no_grad():
        # One by one: the published form's attention takes a gigabyte for six clips.
        tokens = [double.videomae(clip[None]).last_hidden_state for clip in torch.from_numpy(clips).transpose(1, 2)]
        _spread(net.fc_norm, double.fc_norm(torch.cat(tokens).mean(1)))


def randomise_clip(model: Any, *, seed: int) -> None:
    """Set every weight of a Hugging Face ``CLIPModel`` from ``seed``; images differ, and so do captions."""
    import torch

    _draw_all(model, "clip", seed)
    double: Any = copy.deepcopy(model).double()
    size, text = model.config.vision_config.image_size, model.config.text_config
    images = calibration_clips(seed, clips=SAMPLES, frames=1, size=size, mean=0.45, std=0.27)[:, :, 0]
    generator = np.random.Generator(np.random.PCG64(seed))
    words = generator.integers(text.eos_token_id + 1, text.vocab_size, (SAMPLES, SAMPLE_WORDS))
    tokens = np.pad(words, ((0, 0), (1, 1)), constant_values=((0, 0), (text.bos_token_id, text.eos_token_id)))
    with torch.no_grad():
        _spread(model.vision_model.post_layernorm, double.vision_model(torch.from_numpy(images)).pooler_output)
        _spread(model.text_model.final_layer_norm, double.text_model(torch.from_numpy(tokens)).pooler_output)


def _draw_all(net: nn.Module, key: str, seed: int) -> None:
    for name, parameter in net.named_parameters():
        assign(parameter, _values(name, draw(f"{key}.{name}", seed, tuple(parameter.shape))))


def _values(name: str, drawn: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if any(part in name for part in ("layernorm", "layer_norm", "layrnorm", "fc_norm")):
        return (1 + 0.1 * drawn) if name.endswith("weight") else 0.1 * drawn
    if "embedding" in name and "patch" not in name:  # of tokens, positions and class
        return drawn
    if name.endswith("bias"):
        return 0.1 * drawn
    if drawn.ndim < 2:  # CLIP's scale of its logits
        return drawn
    weight = drawn / np.float32(np.sqrt(int(np.prod(drawn.shape[1:]))))
    chooses = any(part in name for part in (".query.", ".key.", ".q_proj.", ".k_proj."))
    return SCORE_GAIN * weight if chooses else weight


def _spread(norm: Any, seen: Tensor) -> None:
    """Change a layer norm's weight and bias so that ``seen``, its outputs [N, width], get mean 0 and
    standard deviation 1."""
    gain = rounded(np.asarray(1 / seen.std(0).square().mean().sqrt().item()))
    assign(norm.weight, gain * norm.weight.detach().numpy())
    assign(norm.bias, gain * (norm.bias.detach().numpy() - rounded(seen.mean(0).numpy())))


# A text decoder of more than DEEP layers adds less per layer, or the first tokens and positions are forgotten.
DEEP_GAIN = 0.35  # of each attention and MLP of a deep text decoder
WORD_SCALE = (
    0.11  # of a word's embedding: logits, its product with a unit-variance vector, get a standard deviation of 3
)
EARLY, END_AROUND, LATE, ENDLESS = 3, 5, 6, 10  # words of an endless caption, to find where captions shall end
END_GAIN = 3.0  # of the end token's logit between early and late words, in units of a winning logit
UNSAID = -60.0  # bias of tokens that no caption may hold: special tokens and word pieces


def randomise_blip(model: BlipForConditionalGeneration, *, seed: int) -> None:
    """Set every weight of ``model`` from ``seed``."""
    gain = DEEP_GAIN if model.config.text_config.num_hidden_layers > DEEP else 1.0
    for name, parameter in model.named_parameters():
        drawn = draw(f"blip.{name}", seed, tuple(parameter.shape))
        assign(parameter, _blip_values(name, drawn, text_gain=gain))
    _centre_embeddings(model, seed=seed)
    _restrict_words(model, seed=seed)
    _make_captions_end(model, seed=seed)


def _blip_values(name: str, drawn: npt.NDArray[np.float32], *, text_gain: float) -> npt.NDArray[np.float32]:
    fan_in = int(np.prod(drawn.shape[1:])) or 1
    if "layernorm" in name.lower() or "layer_norm" in name:
        return (1 + 0.1 * drawn) if name.endswith("weight") else 0.1 * drawn
    if "word_embeddings" in name:
        return WORD_SCALE * drawn
    if "position_embeddings" in name:  # text
        return WORD_SCALE * drawn
    if "class_embedding" in name or "position_embedding" in name:  # image
        return drawn
    if name.endswith("bias"):
        return 0.1 * drawn
    weight = drawn / np.float32(np.sqrt(fan_in))
    if ".qkv." in name:  # queries, keys and values of the vision encoder in one matrix
        scores = 2 * len(weight) // 3
        return np.concatenate([SCORE_GAIN * weight[:scores], weight[scores:]])
    if ".self.query." in name or ".self.key." in name:
        return SCORE_GAIN * weight
    if ".output.dense." in name:
        return text_gain * weight
    return weight


def _centre_embeddings(model: BlipForConditionalGeneration, *, seed: int) -> None:
    """Remove what all images share from the embedding (last layer, position 0), through the last norm's bias.

    Otherwise a head trained on one silo's few classes would drift along that shared direction first.
    """
    import copy

    import torch

    double = copy.deepcopy(model).double()
    config = double.config
    text = config.text_config
    images = 8 if text.num_hidden_layers <= DEEP else 3
    clips = calibration_clips(seed, clips=images, frames=1, size=config.vision_config.image_size, mean=0.45, std=0.27)
    words = np.random.Generator(np.random.PCG64(seed)).choice(np.asarray(word_ids()), size=(images, END_AROUND))
    tokens = np.pad(words, ((0, 0), (1, 1)), constant_values=((0, 0), (CLS, text.sep_token_id)))
    with torch.no_grad():
        seen = double.vision_model(torch.from_numpy(clips[:, :, 0])).last_hidden_state
        read = double.text_decoder.bert(torch.from_numpy(tokens), encoder_hidden_states=seen, is_decoder=False)
    shared = read.last_hidden_state[:, 0].mean(0).numpy()
    bias = model.text_decoder.bert.encoder.layer[-1].output.LayerNorm.bias
    assign(bias, bias.detach().numpy() - rounded(shared))


def _restrict_words(model: BlipForConditionalGeneration, *, seed: int) -> None:
    """Captions hold whole words only, so that their text is tokenised to the same ids again."""
    config = model.config.text_config
    bias = np.full(config.vocab_size, UNSAID, dtype=np.float32)
    words = np.asarray(word_ids())
    bias[words] = 0.3 * draw("blip.said", seed, words.shape)
    bias[config.sep_token_id] = 0.0
    assign(model.text_decoder.cls.predictions.decoder.bias, bias)


def _make_captions_end(model: BlipForConditionalGeneration, *, seed: int) -> None:
    """Give the end token an embedding that wins after about five words, sooner or later by the image.

    Its logit is the projection on the direction in which the states before the output projection
    move from early to late positions, measured on captions of seeded images that may not end.
    """
    import copy

    double = copy.deepcopy(model).double()
    states, winners = _endless_captions(double, seed=seed)
    early, late = states[:, :EARLY].mean((0, 1)), states[:, LATE:].mean((0, 1))
    direction = late - early
    along = states @ direction  # [images, positions]
    usual = float(winners.mean())
    slope = END_GAIN * usual / float(along[:, LATE:].mean() - along[:, :EARLY].mean())
    crossing = float(along[:, END_AROUND].mean())
    row = rounded((slope * direction).numpy())
    end = model.config.text_config.sep_token_id
    assign(model.text_decoder.bert.embeddings.word_embeddings.weight[end], row)
    bias = rounded(np.asarray([usual - slope * crossing]))
    assign(model.text_decoder.cls.predictions.decoder.bias[end : end + 1], bias)


def _endless_captions(double: BlipForConditionalGeneration, *, seed: int) -> tuple[Tensor, Tensor]:
    """States before the output projection [images, positions, width] and winning logits [images, positions]."""
    import torch

    config = double.config
    size = config.vision_config.image_size
    images = 8 if config.text_config.num_hidden_layers <= DEEP else 3  # three take the full model 10 s
    clips = calibration_clips(seed, clips=images, frames=1, size=size, mean=0.45, std=0.27)
    decoder, head = double.text_decoder, double.text_decoder.cls.predictions
    with torch.no_grad():
        image = double.vision_model(torch.from_numpy(clips[:, :, 0])).last_hidden_state
        tokens = torch.full((images, 1), config.text_config.bos_token_id)
        past, states, winners = None, [], []
        for _ in range(ENDLESS):
            step = decoder.bert(tokens, encoder_hidden_states=image, use_cache=True, is_decoder=True, **resumed(past))
            past = key_values(step)
            state = head.transform(step.last_hidden_state[:, -1])
            logits = head.decoder(state)
            logits[:, config.text_config.sep_token_id] = -torch.inf
            winner = logits.max(dim=-1)
            states.append(state)
            winners.append(winner.values)
            tokens = winner.indices[:, None]
    return torch.stack(states, 1), torch.stack(winners, 1)
