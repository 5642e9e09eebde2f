"""A captioner's folder as the hub has it: configuration, weights, tokenizer, preprocessing."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from flamest.base.errors import DataError, UnreachableError, UsageError
from flamest.export.networks.blip import BLIP_TINY_CONFIG
from flamest.export.weights.hub_folder import read_blip_config
from flamest.export.weights.loading import open_blip, open_video
from flamest.export.weights.source import PUBLISHED, parse_source
from flamest.export.weights.vocabulary import vocabulary
from safetensors.torch import save_file

# As published with Salesforce/blip-image-captioning-base: nearly all is left to the library's defaults.
PUBLISHED_CONFIG = {
    "architectures": ["BlipForConditionalGeneration"],
    "image_text_hidden_size": 256,
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "blip",
    "projection_dim": 512,
    "text_config": {"initializer_factor": 1.0, "model_type": "blip_text_model", "num_attention_heads": 12},
    "torch_dtype": "float32",
    "transformers_version": "4.27.0.dev0",
    "vision_config": {
        "dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "model_type": "blip_vision_model",
        "num_channels": 3,
    },
}
PUBLISHED_PREPROCESSING = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
ALIASES = {
    "text_decoder.cls.predictions.decoder.weight": WORDS,
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}


def write_config(folder, config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def changed(config, part, **values):
    return {**config, part: {**config[part], **values}}


def published_weights(shapes):
    """Seeded float16 values in the published names and shapes; tied tensors equal."""
    block = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32).astype(np.float16) * np.float16(0.02)
    tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if name.endswith("position_ids"):
            tensors[name] = torch.arange(shape[1])[None]
        else:
            tensors[name] = torch.from_numpy(np.resize(np.roll(block, index), shape))
    return {**tensors, **{alias: tensors[name].clone() for alias, name in ALIASES.items()}}


def test_the_published_captioner_loads_with_its_474_tensors(tmp_path, blip_base_shapes):
    weights = published_weights(blip_base_shapes)
    write_config(tmp_path, PUBLISHED_CONFIG)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_PREPROCESSING))
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary()[:30_522]))
    save_file(weights, tmp_path / "model.safetensors")
    loaded = open_blip(parse_source("blip", str(tmp_path)))
    assert loaded.source.parameters == 247_414_076
    assert loaded.source.parameters_tied == 223_971_644
    assert (loaded.source.name, loaded.source.revision) == (tmp_path.name, "local files")
    config = loaded.model.config
    assert (config.text_config.num_attention_heads, config.vision_config.num_attention_heads) == (12, 12)
    assert (config.vision_config.image_size, config.text_config.num_hidden_layers) == (384, 12)
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[name].float()), name


def test_a_configuration_without_its_text_heads_is_refused(tmp_path):
    """The library would take 8 without a word (transformers issue 22625)."""
    text = {key: value for key, value in PUBLISHED_CONFIG["text_config"].items() if key != "num_attention_heads"}
    path = write_config(tmp_path, {**PUBLISHED_CONFIG, "text_config": text})
    with pytest.raises(DataError, match=r"does not state text_config.num_attention_heads.*would assume 8.*have 12"):
        read_blip_config(path)


@pytest.mark.parametrize(("part", "heads"), [("text_config", 8), ("vision_config", 8), ("text_config", 24)])
def test_another_number_of_heads_than_published_is_refused(tmp_path, part, heads):
    path = write_config(tmp_path, changed(PUBLISHED_CONFIG, part, num_attention_heads=heads))
    with pytest.raises(
        DataError, match=rf"{part} has {heads} attention heads for a width of 768, expected heads of 64"
    ):
        read_blip_config(path)


def test_a_configuration_of_another_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="describes another model: expected"):
        read_blip_config(write_config(tmp_path, {"model_type": "bert"}))
    asked = {**PUBLISHED_CONFIG, "architectures": ["BlipForQuestionAnswering"]}
    with pytest.raises(DataError, match=r"describes BlipForQuestionAnswering, expected BlipForConditionalGeneration"):
        read_blip_config(write_config(tmp_path, asked))
    (tmp_path / "model.safetensors").write_bytes(b"")
    path = write_config(tmp_path, changed(PUBLISHED_CONFIG, "text_config", hidden_act=3)).parent
    with pytest.raises(DataError, match=r"config\.json describes no network that can be built: .*hidden_act"):
        open_blip(parse_source("blip", str(path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is not valid JSON"):
        read_blip_config(tmp_path / "config.json")


def test_a_folder_without_its_files_names_the_missing_ones(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*config\.json") as refused:
        open_blip(parse_source("blip", str(tmp_path)))
    assert "config.json, pytorch_model.bin (or model.safetensors), tokenizer.json (or vocab.txt)" in refused.value.fix
    write_config(tmp_path, PUBLISHED_CONFIG)
    with pytest.raises(DataError, match=r"holds no weights: expected model\.safetensors or pytorch_model\.bin"):
        open_blip(parse_source("blip", str(tmp_path)))


@pytest.fixture
def tiny_folder(tmp_path, tiny_blip):
    """``random:tiny`` as files."""
    write_config(tmp_path, BLIP_TINY_CONFIG)
    kept = {name: tensor for name, tensor in tiny_blip.model.state_dict().items() if name not in ALIASES}
    save_file(kept, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(tiny_blip.tokenizer)
    return tmp_path


def test_weights_keep_their_hash_when_loaded_from_files(tiny_folder, tiny_blip):
    from_folder, from_file = (
        open_blip(parse_source("blip", str(tiny_folder))),
        open_blip(parse_source("blip", str(tiny_folder / "model.safetensors"))),
    )
    assert from_folder.source.weights_sha256 == tiny_blip.source.weights_sha256
    assert from_file.source.weights_sha256 == tiny_blip.source.weights_sha256
    assert from_folder.tokenizer == tiny_blip.tokenizer


def test_other_preprocessing_than_published_is_refused(tiny_folder):
    (tiny_folder / "preprocessor_config.json").write_text(json.dumps({**PUBLISHED_PREPROCESSING, "resample": 2}))
    with pytest.raises(DataError, match=r"resample is 2, expected 3"):
        open_blip(parse_source("blip", str(tiny_folder)))


def test_a_folder_without_a_tokenizer_is_refused(tiny_folder):
    (tiny_folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"holds neither tokenizer\.json nor vocab\.txt"):
        open_blip(parse_source("blip", str(tiny_folder)))


def test_without_network_the_error_names_the_files_and_a_command(monkeypatch):
    import huggingface_hub

    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(UnreachableError, match=r"cannot fetch 'Salesforce/blip-image-captioning-base'") as refused:
        open_blip(parse_source("blip", "Salesforce/blip-image-captioning-base"))
    assert refused.value.exit_code == 69
    for wanted in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        assert wanted in refused.value.fix
    assert "flamest-export --backend onnx --blip ./blip-image-captioning-base --out DIR" in refused.value.fix


def test_a_hub_id_is_fetched_at_its_revision_which_is_recorded(monkeypatch, tiny_folder, tmp_path_factory):
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path_factory.mktemp("hub") / commit
    snapshot.symlink_to(tiny_folder)
    asked = []

    def fetch(repository, *, revision, allow_patterns):
        asked.append((repository, revision, set(allow_patterns)))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    source = open_blip(parse_source("blip", "someone/captioner@v2")).source
    assert source.name == "someone/captioner@v2"
    sha256 = hashlib.sha256((snapshot / "model.safetensors").read_bytes()).hexdigest()
    assert source.revision == f"commit {commit}, file SHA-256 {sha256}"
    assert source.licence.startswith("not known")
    (repository, revision, files), *more = asked
    assert (repository, revision, more) == ("someone/captioner", "v2", [])
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= files
    assert not any(name.endswith((".bin", ".pth")) for name in files)


def test_without_network_the_slow_weights_to_bring_are_named(monkeypatch):
    import urllib.error
    import urllib.request

    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_network)
    with pytest.raises(UnreachableError, match=r"SLOW_8x8_R50\.pyth") as refused:
        open_video(parse_source("slow", "slow_r50"))
    assert "--slow PATH/SLOW_8x8_R50.pyth" in refused.value.fix


@pytest.mark.parametrize("name", ["nothing-here", "random:huge", "random:", "./no/folder", "/no/folder"])
def test_a_source_of_unknown_form_is_a_usage_error(name):
    for network in PUBLISHED:
        with pytest.raises(UsageError, match="expected"):
            parse_source(network, name)
