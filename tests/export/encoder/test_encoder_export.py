"""Export of encoders of one's own: graphs, manifest and fingerprint; verification."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.export import Encoder, Pooling, Preprocessing
from flamest.export.checks import check_bundle
from flamest.export.encoder import loading
from flamest.export.encoder.settings import read_encoder
from flamest.export.parity.verification import verify_bundle
from flamest.runtime.bundle.manifest_reading import read_manifest

from .conftest import IMAGE, VIDEO, export


def verified(bundle, silent, encoder):
    return verify_bundle(bundle, silent, encoder=encoder)


def test_an_image_encoder_alone_is_a_bundle_without_slow(image_bundle):
    manifest = read_manifest(image_bundle)
    assert (manifest.schema, manifest.extractor, manifest.width) == (5, "tiny-image", 16)
    assert set(manifest.graphs) == {"cnn"}
    assert manifest.parity.graphs["cnn"].max_rel < 1e-5
    assert manifest.cnn.encoder.source == "file modules.py:image"
    assert (manifest.cnn.preprocessing.size, manifest.cnn.preprocessing.short_side) == (32, 40)
    assert all(result.ok for result in check_bundle(image_bundle))


def test_mean_and_motion_are_those_of_the_maps(image_bundle):
    import torch
    from flamest.runtime.backends.onnxruntime_cpu import open_session

    from . import modules

    rgb = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    rule = read_manifest(image_bundle).cnn.preprocessing
    frames = torch.from_numpy((rgb / 255 - rule.mean) / rule.std).float().permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        maps = torch.stack([modules.image()(clip) for clip in frames]).numpy()
    motion = np.abs(maps[:, 1:] - maps[:, :-1]).mean((1, 3, 4))
    session = open_session(image_bundle / "cnn.onnx", threads=1)
    found = session.run({"frames": rgb})["embedding"]
    np.testing.assert_allclose(found, np.concatenate([maps.mean((1, 3, 4)), motion], axis=1), atol=1e-5)


def test_a_video_encoder_with_a_named_output_in_python(toml, tmp_path):
    import flamest as fl

    from . import modules

    given = Encoder(
        name="tiny-video",
        module=modules.Video(),
        kind="video",
        layout="channels-first",
        frames=6,
        output="tokens",
        call={"doubled": True},
        preprocessing=Preprocessing(size=32),
        pooling=Pooling(skip_tokens=1),
    )
    bundle = fl.export_bundle(tmp_path / "python", extractor=given)
    assert bundle.width == 6
    assert bundle.manifest.cnn.encoder.source.endswith("modules.Video")
    other = export(toml(VIDEO), tmp_path / "toml")
    assert other.fingerprint != bundle.fingerprint  # another call, and another source


CHANGES = {
    "mean": ("[preprocessing]", "[preprocessing]\nmean = [0.5, 0.5, 0.5]"),
    "resize": ("resize = 40", "resize = 36"),
    "filter": ("[preprocessing]", '[preprocessing]\nfilter = "bilinear"'),
    "frames": ("frames = 4", "frames = 5"),
    "pooling": ('"mean+motion"', '"motion"'),
    "weights": ("frames = 4", "frames = 4\narguments = {seed = 1}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_an_embedding_changes_the_fingerprint(change, toml, image_bundle, silent):
    encoder = read_encoder(toml(IMAGE.replace(*CHANGES[change])))
    loaded, record = loading.open_encoder(encoder)
    manifest = read_manifest(image_bundle)
    from flamest.export.parts import spatio_temporal

    changed = msgspec.structs.replace(
        manifest, cnn=spatio_temporal(loaded, "uniform", record), sources={"encoder": loaded.source}
    )
    assert changed.fingerprint != manifest.fingerprint
    with pytest.raises(DataError) as refused:
        verified(image_bundle, silent, encoder)
    assert refused.value.code == "other_encoder"


def test_changed_code_is_another_encoder(toml, image_bundle, silent):
    path = toml(IMAGE)
    verified(image_bundle, silent, read_encoder(path))
    (path.parent / "modules.py").write_text((path.parent / "modules.py").read_text() + "\n# changed\n")
    with pytest.raises(DataError, match="source_sha256 is") as refused:
        verified(image_bundle, silent, read_encoder(path))
    assert refused.value.code == "other_encoder"


def test_verify_without_the_toml_compares_nothing_and_names_it(image_bundle, silent):
    done = verified(image_bundle, silent, None)
    assert done.parity.graphs == {}
    assert "--extractor FILE.toml" in done.not_compared["encoder"]


def test_weights_of_a_file_are_checked_and_recorded(toml, tmp_path, image_bundle, silent):
    from safetensors.torch import save_file

    from . import modules

    path = toml(IMAGE.replace("frames = 4", 'frames = 4\nweights = "w.safetensors"'))
    save_file(modules.image(7).state_dict(), tmp_path / "w.safetensors")
    loaded, _ = loading.open_encoder(read_encoder(path))
    assert "w.safetensors, file SHA-256" in loaded.source.revision
    assert loaded.source.weights_sha256 != read_manifest(image_bundle).sources["encoder"].weights_sha256
    with pytest.raises(DataError) as refused:
        verified(image_bundle, silent, read_encoder(path))
    assert refused.value.code == "other_weights"
    save_file({"layers.0.weight": modules.image().state_dict()["layers.0.weight"]}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="3 missing") as refused:
        loading.open_encoder(read_encoder(path))
    assert refused.value.code == "wrong_checkpoint"


def test_a_graph_that_computes_something_else_leaves_no_bundle(toml, tmp_path, monkeypatch):
    right = loading.pooled_module
    monkeypatch.setattr(
        loading,
        "pooled_module",
        lambda net, record, frames: right(net, msgspec.structs.replace(record, positions="first"), frames),
    )
    with pytest.raises(DataError) as refused:
        export(toml(IMAGE), tmp_path / "bundle")
    assert refused.value.code == "parity_failed"
    assert not (tmp_path / "bundle").exists()


def test_dry_run_and_inspect_show_the_encoder(toml, image_bundle, capsys):
    from flamest.export.cli.main import app
    from typer.testing import CliRunner

    runner = CliRunner()
    done = runner.invoke(app, ["--backend", "onnx", "--extractor", str(toml(IMAGE)), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said["graphs"]) == {"cnn"}
    assert said["graphs"]["cnn"]["values"] == 3 * 8 * 9 + 8 + 8 * 8 * 9 + 8
    shown = runner.invoke(app, ["inspect", str(image_bundle)]).output
    assert "file modules.py:image, code " in shown
    assert "mean absolute difference of neighbouring frames" in shown
    assert "keyframes" not in shown
