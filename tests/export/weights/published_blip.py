"""The files of the published captioner as the hub has them, its weights small: configuration and preprocessing to the
byte, pytorch_model.bin with the published names, no safetensors, and TensorFlow's weights next to it."""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from flamest.export.networks.blip import BLIP_TINY_CONFIG
from flamest.export.weights.vocabulary import vocabulary

REPOSITORY = "Salesforce/blip-image-captioning-base"
REVISION = "82a37760796d32b1411fe092ab5d4e227313294b"
# Of the files at that revision, as public repositories list them (read November 2026).
CONFIG_SHA256 = "f7846f82f4e2c4a2ccbab9ae8b0e44873540a271a76a1288effd078180c13a82"
PREPROCESSOR_SHA256 = "065c10ec97edc5081fbd9655b3d9d25e2647ea6d5dab873325e88eed12d80a7d"

# Every PretrainedConfig of the library's version 4.26 had these.
_DEFAULTS: dict[str, Any] = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None,
    "begin_suppress_tokens": None, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None, "finetuning_task": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20,
    "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict": True, "return_dict_in_generate": False, "suppress_tokens": None, "task_specific_params": None,
    "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": True,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": None, "torchscript": False,
    "transformers_version": "4.26.0.dev0", "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_BOTH = {"hidden_act": "gelu", "initializer_factor": 1.0, "initializer_range": 0.02}
CONFIG: dict[str, Any] = {
    "_commit_hash": None,
    "architectures": ["BlipForConditionalGeneration"],
    "image_text_hidden_size": 256,
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "blip",
    "projection_dim": 512,
    "text_config": {
        **_DEFAULTS, **_SIZES, **_BOTH, "attention_probs_dropout_prob": 0.0, "bos_token_id": 30522, "eos_token_id": 2,
        "hidden_dropout_prob": 0.0, "is_decoder": True, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
        "model_type": "blip_text_model", "pad_token_id": 0, "projection_dim": 768, "sep_token_id": 102,
        "use_cache": True, "vocab_size": 30524,
    },
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": {
        **_DEFAULTS, **_SIZES, **_BOTH, "attention_dropout": 0.0, "bos_token_id": None, "dropout": 0.0,
        "eos_token_id": None, "image_size": 384, "is_decoder": False, "layer_norm_eps": 1e-05,
        "model_type": "blip_vision_model", "num_channels": 3, "pad_token_id": None, "patch_size": 16,
        "projection_dim": 512, "sep_token_id": None,
    },
}  # fmt: skip
PREPROCESSOR = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "BlipImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "BlipProcessor",
    "size": 384,
}


def as_file(content: dict[str, Any]) -> bytes:
    """A JSON file as the library writes it."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def small_config() -> dict[str, Any]:
    """The published configuration with the sizes of the tiny captioner."""
    return {
        **CONFIG,
        "text_config": {**CONFIG["text_config"], **BLIP_TINY_CONFIG["text_config"]},
        "vision_config": {**CONFIG["vision_config"], **BLIP_TINY_CONFIG["vision_config"]},
    }


def small_files(model: Any) -> dict[str, bytes]:
    """The repository's files with the weights of ``model``, a tiny captioner, pickled as the hub has them.

    ``tokenizer.json`` is left out: ``vocab.txt`` holds BERT's 30,522 words and none of BLIP's own two, as published.
    """
    state = dict(model.state_dict())
    state["text_decoder.bert.embeddings.position_ids"] = torch.arange(64)[None]  # older libraries stored them
    buffer = io.BytesIO()
    torch.save({name: tensor.clone() for name, tensor in state.items()}, buffer)
    return {
        ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "README.md": b"---\nlicense: bsd-3-clause\n---\n",
        "config.json": as_file(small_config()),
        "preprocessor_config.json": as_file(PREPROCESSOR),
        "pytorch_model.bin": buffer.getvalue(),
        "special_tokens_map.json": b"{}\n",
        "tf_model.h5": b"\x89HDF" + bytes(2000),
        "vocab.txt": "\n".join(vocabulary()[:30_522]).encode() + b"\n",
    }
