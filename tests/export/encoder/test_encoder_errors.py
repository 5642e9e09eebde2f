"""Encoders that cannot be exported: each with its named error and the way out."""

from __future__ import annotations

import pytest
from flamest.base.errors import DataError, FlamestError, SettingsError, UsageError
from flamest.export.encoder.loading import open_encoder
from flamest.export.encoder.settings import read_encoder

from .conftest import IMAGE, VIDEO, export

SETTINGS = {
    "an unknown key": (("frames = 4", "frame = 4"), "unknown key 'frame'"),
    "an unknown key of a section": (("resize = 40", "rezise = 40"), "unknown key 'rezise' in [preprocessing]"),
    "no module": (('module = "modules.py:image"', ""), "none of them given"),
    "two modules": (("frames = 4", 'hub = "a/b"'), "module and hub given"),
    "a module without function": (("modules.py:image", "modules.py"), "expected 'FILE.py:FUNCTION'"),
    "a name with spaces": (("tiny-image", "Tiny image"), "expected small letters"),
    "no frames": (("frames = 4", "frames = 0"), "expected 1 to 128"),
    "too many keyframes": (("frames = 4", 'frames = 33\nchoice = "keyframes"'), "expected 1 to 32"),
    "a resize below the crop": (("resize = 40", "resize = 31"), "at least size = 32"),
    "a deviation of zero": (("resize = 40", "std = [0, 1, 1]"), "std"),
    "an unknown filter": (("resize = 40", 'filter = "nearest"'), "preprocessing.filter"),
    "motion of one frame": (("frames = 4", "frames = 1"), "two frames or more"),
    "motion of a video": (("frames = 4", 'kind = "video"'), "sees the frames together"),
    "two mean values": (("resize = 40", "mean = [0.5, 0.5]"), "preprocessing.mean"),
}


@pytest.mark.parametrize("wrong", SETTINGS)
def test_settings_that_cannot_be_are_named(wrong, toml):
    change, named = SETTINGS[wrong]
    with pytest.raises(SettingsError) as refused:
        read_encoder(toml(IMAGE.replace(*change)))
    assert named in refused.value.message
    assert "encoder.toml" in refused.value.message
    assert "own-encoder.md" in refused.value.fix


MODULES = {
    "no such function": ("modules.py:other", "encoder_module", "no function 'other'"),
    "no such file": ("other.py:image", "encoder_module", "no such file"),
    "code that raises": ("modules.py:broken", "encoder_module", "ValueError: no weights today"),
    "no module": ("modules.py:nothing", "encoder_module", "returned NoneType"),
    "a missing package": ("modules.py:needs_package", "missing_package", "'a_package_that_nobody_has'"),
    "a missing package of a module": ("a_package_that_nobody_has:make", "missing_package", "not installed"),
    "values that are not finite": ("modules.py:NotFinite", "not_finite", "not finite"),
    "random values": ("modules.py:Random", "not_repeatable", "other numbers for the same clip"),
    "a text": ("modules.py:Text", "encoder_output", "returns str"),
    "several outputs": ("modules.py:Video", "encoder_shape", "raised"),
}


@pytest.mark.parametrize("wrong", MODULES)
def test_modules_that_cannot_be_used_are_named(wrong, toml):
    module, code, named = MODULES[wrong]
    with pytest.raises(DataError) as refused:
        open_encoder(read_encoder(toml(IMAGE.replace("modules.py:image", module))))
    assert refused.value.code == code
    assert named in refused.value.message
    assert refused.value.fix


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('output = "tokens"', ""), "has several outputs: tokens, first"),
        (('"tokens"', '"pooled"'), "has no tensor 'pooled': tokens, first"),
    ],
)
def test_an_output_that_is_not_named_lists_the_outputs(change, named, toml):
    with pytest.raises(DataError) as refused:
        open_encoder(read_encoder(toml(VIDEO.replace(*change))))
    assert refused.value.code == "encoder_output"
    assert named in refused.value.message


def test_another_width_than_expected_is_named(toml):
    with pytest.raises(DataError, match="embeddings of 16 numbers, width = 8"):
        open_encoder(read_encoder(toml(IMAGE.replace("frames = 4", "frames = 4\nwidth = 8"))))


@pytest.mark.parametrize("module", ["Branching", "FixedBatch"])
def test_what_pytorch_cannot_export_leaves_no_bundle(module, toml, tmp_path):
    frames = "frames = 8" if module == "FixedBatch" else "frames = 4"
    path = toml(IMAGE.replace("modules.py:image", f"modules.py:{module}").replace("frames = 4", frames))
    with pytest.raises(FlamestError) as refused:
        export(path, tmp_path / "bundle")
    assert refused.value.code in ("encoder_not_exported", "encoder_shape")
    assert not (tmp_path / "bundle").exists()


def test_a_toml_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_encoder(tmp_path / "none.toml")


def test_timm_that_is_not_installed_is_named(toml, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DataError, match="timm is not installed") as refused:
        open_encoder(read_encoder(toml(IMAGE.replace('module = "modules.py:image"', 'timm = "vit_small"'))))
    assert refused.value.code == "missing_package"
