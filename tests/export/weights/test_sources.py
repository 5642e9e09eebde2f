"""Sources of CLIP, VideoMAE, I3D and ResNet-3D: folders as the hub has them, checkpoint files, the mini-world."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
import torch
from flamest.base.errors import DataError, StorageError, UnreachableError
from flamest.export.networks.clip import CLIP_TINY_CONFIG, read_captions, tokenize_captions
from flamest.export.networks.resnet3d import build_r3d_tiny
from flamest.export.networks.slow_i3d import build_i3d_tiny
from flamest.export.networks.videomae import VIDEOMAE_TINY_CONFIG
from flamest.export.source_options import SourceOptions
from flamest.export.weights.checkpoints import load_checkpoint_tensors
from flamest.export.weights.loading import open_blip, open_clip, open_video
from flamest.export.weights.source import parse_source, recorded_source
from flamest.export.weights.tokenizer import synthetic_tokenizer
from flamest.export.weights.video import fill_video
from flamest.export.weights.vocabulary import CLS, SEP
from safetensors.torch import save_file

QUERY_BIAS = "videomae.encoder.layer.1.attention.attention.query.bias"
POSITION_IDS = "text_model.embeddings.position_ids"


def written(folder, config, weights, tokenizer=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer)
    return folder


@pytest.fixture(scope="module")
def tiny_videomae():
    return open_video(parse_source("videomae", "random:tiny"))


@pytest.fixture(scope="module")
def tiny_clip():
    return open_clip(parse_source("clip", "random:tiny"))


@pytest.fixture
def videomae_folder(tmp_path, tiny_videomae):
    return written(tmp_path / "videomae", VIDEOMAE_TINY_CONFIG, tiny_videomae.net.state_dict())


@pytest.fixture
def clip_folder(tmp_path, tiny_clip):
    text = {**CLIP_TINY_CONFIG["text_config"], "bos_token_id": CLS, "eos_token_id": SEP}
    config = {**CLIP_TINY_CONFIG, "text_config": text}
    return written(tmp_path / "clip", config, tiny_clip.model.state_dict(), tiny_clip.tokenizer)


def test_weights_keep_their_hash_when_loaded_from_a_folder(videomae_folder, clip_folder, tiny_videomae, tiny_clip):
    video, clip = (
        open_video(parse_source("videomae", str(videomae_folder))),
        open_clip(parse_source("clip", str(clip_folder))),
    )
    assert video.source.weights_sha256 == tiny_videomae.source.weights_sha256
    assert clip.source.weights_sha256 == tiny_clip.source.weights_sha256
    assert (video.form, video.source.name) == (tiny_videomae.form, "videomae")
    assert (clip.captions, clip.tokenizer) == ((), tiny_clip.tokenizer)


def test_tensors_in_the_form_of_older_libraries_are_accepted(tmp_path, tiny_videomae, tiny_clip):
    renamed = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): tensor
        for name, tensor in tiny_videomae.net.state_dict().items()
    }
    assert QUERY_BIAS not in renamed
    folder = written(tmp_path / "videomae", VIDEOMAE_TINY_CONFIG, renamed)
    assert (
        open_video(parse_source("videomae", str(folder))).source.weights_sha256 == tiny_videomae.source.weights_sha256
    )
    numbered = {**tiny_clip.model.state_dict(), POSITION_IDS: torch.arange(77)[None]}
    folder = written(tmp_path / "clip", tiny_clip.model.config.to_dict(), numbered, tiny_clip.tokenizer)
    assert open_clip(parse_source("clip", str(folder))).source.weights_sha256 == tiny_clip.source.weights_sha256
    numbered[POSITION_IDS] = torch.zeros(1, 77, dtype=torch.int64)
    save_file(numbered, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"position_ids' is not 0, 1, 2"):
        open_clip(parse_source("clip", str(folder)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("fc_norm.bias"), "1 missing: 'fc_norm.bias'"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "1 unexpected: 'more'"),
        (
            lambda tensors: tensors.update({"fc_norm.bias": torch.zeros(5)}),
            r"'fc_norm.bias' is \[5\], expected \[768\]",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(videomae_folder, tiny_videomae, change, said):
    tensors = dict(tiny_videomae.net.state_dict())
    change(tensors)
    save_file(tensors, videomae_folder / "model.safetensors")
    with pytest.raises(DataError, match=said) as refused:
        open_video(parse_source("videomae", str(videomae_folder)))
    assert refused.value.code == "wrong_checkpoint"


@pytest.mark.parametrize("build", [build_i3d_tiny, build_r3d_tiny])
def test_a_checkpoint_file_of_another_network_is_refused(tmp_path, build):
    net = build()
    tensors = {name: torch.ones_like(tensor) for name, tensor in net.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    filled = fill_video(
        build(),
        load_checkpoint_tensors(tmp_path / "a.safetensors"),
        file=tmp_path / "a.safetensors",
        what="the tiny one",
    )
    assert all(bool((value == 1).all()) for value in filled.state_dict().values())
    name = next(iter(tensors))
    del tensors[name]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=f"is not a checkpoint of the tiny one .*1 missing: '{name}'"):
        fill_video(
            build(),
            load_checkpoint_tensors(tmp_path / "a.safetensors"),
            file=tmp_path / "a.safetensors",
            what="the tiny one",
        )


def test_a_folder_of_another_model_is_refused(videomae_folder, clip_folder):
    with pytest.raises(DataError, match='expected "model_type": "clip"'):
        open_clip(parse_source("clip", str(videomae_folder)))
    config = {**VIDEOMAE_TINY_CONFIG, "architectures": ["VideoMAEForPreTraining"]}
    (videomae_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="describes VideoMAEForPreTraining, expected VideoMAEForVideoClassification"):
        open_video(parse_source("videomae", str(videomae_folder)))
    (clip_folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    with pytest.raises(DataError, match=r"image_mean is \[0.5, 0.5, 0.5\], expected \(0.48145466"):
        open_clip(parse_source("clip", str(clip_folder)))
    shutil.rmtree(videomae_folder)
    videomae_folder.mkdir()
    with pytest.raises(DataError, match=r"cannot read .*config\.json") as refused:
        open_video(parse_source("videomae", str(videomae_folder)))
    assert "config.json, model.safetensors (or pytorch_model.bin) and preprocessor_config.json" in refused.value.fix


@pytest.mark.parametrize(
    ("network", "name", "file"),
    [
        ("i3d", "i3d_r50", "I3D_8x8_R50.pyth"),
        ("resnet3d", "r3d_18", "r3d_18-b3b3357e.pth"),
        ("videomae", "MCG-NJU/videomae-base-finetuned-kinetics", "./videomae-base-finetuned-kinetics"),
        ("clip", "openai/clip-vit-base-patch32", "./clip-vit-base-patch32"),
    ],
)
def test_without_network_the_weights_to_bring_are_named(monkeypatch, network, name, file):
    import urllib.error
    import urllib.request

    import huggingface_hub

    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_network)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(UnreachableError) as refused:
        open_clip(parse_source("clip", name)) if network == "clip" else open_video(parse_source(network, name))
    assert f"--{network} " in refused.value.fix
    assert file in refused.value.fix


def test_a_missing_mini_world_network_is_an_untrained_error(monkeypatch, tmp_path):
    from flamest.export.weights import loading

    monkeypatch.setattr(loading, "load_small", functools.partial(loading.load_small, folder=tmp_path))
    openers = [
        lambda: open_blip(parse_source("blip", "miniworld")),
        lambda: open_clip(parse_source("clip", "miniworld")),
    ]
    openers += [
        lambda name=name: open_video(parse_source(name, "miniworld"))
        for name in ("slow", "i3d", "resnet3d", "videomae")
    ]
    for opener in openers:
        with pytest.raises(DataError, match="is not trained") as refused:
            opener()
        assert refused.value.code == "untrained"
        assert "flamest.experiments.pretraining" in refused.value.fix


def test_a_mini_world_network_is_loaded_from_its_half_precision_file(monkeypatch, tmp_path):
    from flamest.export.networks import small
    from flamest.export.weights import loading

    torch.manual_seed(0)
    weights = small.build_small_resnet3d().state_dict()
    save_file(
        {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}, tmp_path / "resnet3d.safetensors"
    )
    monkeypatch.setattr(loading, "load_small", functools.partial(loading.load_small, folder=tmp_path))
    loaded = open_video(parse_source("resnet3d", "miniworld"))
    for name, tensor in loaded.net.state_dict().items():
        assert torch.equal(tensor, weights[name].half().to(tensor.dtype)), name
    assert (loaded.form.frames, loaded.form.width, loaded.preprocessing.resized) == (3, 128, None)
    assert open_video(parse_source("resnet3d", "random:tiny")).preprocessing.resized == (64, 86)


def test_captions_are_read_by_class_or_by_line_each_once(tmp_path):
    by_class, by_line = tmp_path / "a.json", tmp_path / "a.txt"
    by_class.write_text('{"run": "a man runs", "walk": ["a man walks", " a man runs "]}')
    by_line.write_text("a man runs\n\n a man walks \na man runs\n")
    assert read_captions(by_class) == read_captions(by_line) == ("a man runs", "a man walks")
    for text in ("", "[]", '{"run": 3}', "{"):
        by_class.write_text(text)
        with pytest.raises(DataError, match=r"a\.json"):
            read_captions(by_class)
    with pytest.raises(StorageError, match="cannot read"):
        read_captions(tmp_path / "none.json")


def test_a_caption_that_the_model_cannot_read_is_refused(tiny_clip):
    config, tokenizer = tiny_clip.model.config, synthetic_tokenizer()
    assert tokenize_captions(tokenizer, ["baba bebe"], config)[0][0] == CLS
    with pytest.raises(DataError, match=r"has 102 tokens, expected 3 to 77"):
        tokenize_captions(tokenizer, [" ".join(["baba"] * 100)], config)
    with pytest.raises(DataError, match=r"has 2 tokens, expected 3 to 77"):
        tokenize_captions(tokenizer, [""], config)
    config = type(config)(**CLIP_TINY_CONFIG)  # starts with 49,406
    with pytest.raises(DataError, match="it is not the model's"):
        tokenize_captions(tokenizer, ["baba bebe"], config)


@pytest.mark.parametrize(
    ("network", "name", "kind"),
    [
        ("blip", "Salesforce/blip-image-captioning-base", "hub"),
        ("slow", "slow_r50", "zoo"),
        ("slow", "random:tiny:7", "random"),
        ("clip", "miniworld", "miniworld"),
    ],
)
def test_a_recorded_source_means_the_same_next_to_a_file_so_named(tmp_path, monkeypatch, network, name, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    assert recorded_source(network, name).kind == kind
    assert recorded_source(network, "weights.pth") is None


def test_a_file_takes_precedence_over_a_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_source("slow", "slow_r50").kind == "zoo"
    (tmp_path / "slow_r50").touch()
    assert parse_source("slow", "slow_r50").kind == "files"


def test_an_empty_source_option_counts_as_not_given():
    assert SourceOptions(blip="", slow="random:tiny").given() == {"slow": "random:tiny"}
