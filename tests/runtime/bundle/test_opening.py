"""Nothing of a bundle is opened before all of it is known to be what was exported."""

import os
import shutil

import msgspec
import onnx
import pytest
from flamest.base.errors import DataError
from flamest.runtime.bundle.graph_check import check_graph
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.opening import open_bundle

GRAPHS = ("vision", "text", "cnn", "keyframes")


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def refused(bundle):
    with pytest.raises(DataError) as caught:
        open_bundle(bundle)
    return caught.value


def test_an_untouched_bundle_opens_and_names_its_files(bundle):
    opened = open_bundle(bundle)
    assert opened.graph("cnn") == bundle / "cnn.onnx"
    assert opened.tokenizer.is_file()
    assert opened.manifest.width == 4 + 5


@pytest.mark.parametrize("name", [*(f"{graph}.onnx" for graph in GRAPHS), "tokenizer.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "longer", "missing", "link", "folder"])
def test_every_file_in_every_harmed_state_is_refused_by_name(bundle, name, harm):
    file = bundle / name
    data = bytearray(file.read_bytes())
    match harm:
        case "flip":
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "cut":
            file.write_bytes(data[:-1])
        case "longer":
            file.write_bytes(data + b"\0")
        case "missing":
            file.unlink()
        case "link":
            shutil.move(file, bundle.parent / name)
            file.symlink_to(bundle.parent / name)
        case "folder":
            file.unlink()
            file.mkdir()
    error = refused(bundle)
    assert error.code == "bundle_tampered"
    assert name in error.message
    assert error.exit_code == 65


@pytest.mark.parametrize("extra", ["weights.bin", ".hidden", "licences/MORE"])
def test_a_file_that_is_not_in_the_manifest_is_refused_by_name(bundle, extra):
    (bundle / extra).parent.mkdir(exist_ok=True)
    (bundle / extra).write_bytes(b"x")
    assert (refused(bundle).code, extra in refused(bundle).message) == ("bundle_tampered", True)


@pytest.mark.parametrize("special", ["link", "pipe"])
def test_links_and_special_files_are_refused_even_if_not_listed(bundle, special):
    if special == "link":
        (bundle / "folder").symlink_to(bundle.parent)
    else:
        os.mkfifo(bundle / "pipe")
    assert refused(bundle).code == "bundle_tampered"


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "a//b", "./a", "a\\b", "bundle.json", ""])
def test_names_that_lead_outside_are_refused_before_any_file_is_read(bundle, name):
    manifest = read_manifest(bundle)
    entry = next(iter(manifest.files.values()))
    harmed = msgspec.structs.replace(manifest, files={**manifest.files, name: entry})
    (bundle / "bundle.json").write_bytes(msgspec.json.encode(harmed))
    (bundle.parent / "outside.bin").write_bytes(b"x")
    error = refused(bundle)
    assert error.code == "bundle_tampered"
    assert "not a plain name" in error.message


def test_a_graph_whose_hash_is_not_listed_is_refused(bundle, toys):
    manifest = read_manifest(bundle)
    files = {name: entry for name, entry in manifest.files.items() if name != "cnn.onnx"}
    (bundle / "bundle.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))
    assert "cnn.onnx" in refused(bundle).message


def test_a_manifest_without_a_graph_that_is_needed_is_refused_by_name(bundle, toys):
    (bundle / "cnn.onnx").unlink()
    toys.write_manifest(bundle)
    assert "lacks graph cnn" in refused(bundle).message


NEEDED = {
    "blip": {"vision", "text"},
    "blip-text": {"vision", "text", "words"},
    "clip": {"clip"},
    "slow-uniform": {"cnn"},
    "blip-text+resnet3d": {"vision", "text", "words", "cnn"},
}


@pytest.mark.parametrize("extractor", NEEDED)
def test_an_extractor_needs_the_graphs_that_it_runs_and_the_keyframe_graph(toys, tmp_path, extractor):
    opened = open_bundle(toys.write_bundle(tmp_path / "bundle", extractor=extractor))
    assert set(opened.manifest.needed_graphs) == {"keyframes"} | NEEDED[extractor]
    assert opened.manifest.needs_tokenizer == opened.tokenizer.is_file() == ("blip" in extractor)
    vlm, cnn = opened.manifest.vlm, opened.manifest.cnn
    assert opened.manifest.width == (vlm.width if vlm else 0) + (cnn.width if cnn else 0) > 0


def test_a_bundle_without_its_tokenizer_is_refused(bundle, toys):
    (bundle / "tokenizer.json").unlink()
    toys.write_manifest(bundle)
    assert "lists no hash for 'tokenizer.json'" in refused(bundle).message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vlm": None, "cnn": None}, "neither vlm nor cnn"),
        ({"schema": 1}, "has schema 1, this version reads schema 3, 4 or 5"),
        ({"captioned_frames": 9}, "vlm.captioned_frames is 9, expected 1 to 8"),
        ({"captioned_frames": 0}, "vlm.captioned_frames is 0, expected 1 to 8"),
        ({"frames": 0}, "cnn.frames is 0, expected at least 1"),
    ],
)
def test_a_manifest_that_describes_no_extractor_is_refused(bundle, toys, changes, problem):
    if "captioned_frames" in changes:
        changes = {"vlm": toys.vision_language(**changes)}
    elif "frames" in changes:
        changes = {"cnn": msgspec.structs.replace(toys.spatio_temporal(), **changes)}
    toys.write_manifest(bundle, **changes)
    assert problem in refused(bundle).message


def test_a_manifest_of_the_first_schema_is_refused_with_a_fix(bundle):
    (bundle / "bundle.json").write_text('{"schema": 1, "vlm": {"cross_attention": "bidirectional"}}')
    assert "has schema 1, this version reads schema 3, 4 or 5" in refused(bundle).message
    assert "export the bundle again" in refused(bundle).fix


def test_what_decides_an_embedding_decides_the_fingerprint(bundle, toys):
    prints = {
        toys.write_manifest(bundle, **changes).fingerprint
        for changes in (
            {},
            {"vlm": toys.vision_language("causal-last")},
            {"vlm": toys.vision_language("text")},
            {"vlm": toys.vision_language(captioned_frames=4)},
            {"vlm": None},
            {"cnn": None},
            {"cnn": toys.spatio_temporal("slow", "uniform")},
            {"cnn": toys.spatio_temporal("resnet3d")},
            {"vlm": toys.retrieved_caption()},
            {"vlm": msgspec.structs.replace(toys.retrieved_caption(), tokens_sha256="3" * 64)},
        )
    }
    assert len(prints) == 10
    same = {toys.write_manifest(bundle, **changes).fingerprint for changes in ({}, {"precision": "fp16"})}
    assert len(same) == 1


def test_a_bundles_precision_is_that_of_its_embedding_graphs(bundle, toys):
    manifest = toys.write_manifest(bundle, precision="int8")
    assert manifest.precision == "int8"
    fp32 = {name: msgspec.structs.replace(manifest.graphs[name], precision="fp32") for name in GRAPHS}
    for changed, label in (
        ({"keyframes": fp32["keyframes"]}, "int8"),
        ({"text": fp32["text"]}, "cnn=int8,text=fp32,vision=int8"),
        (fp32, "fp32"),
    ):
        assert msgspec.structs.replace(manifest, graphs=manifest.graphs | changed).precision == label


@pytest.mark.parametrize("nested", [False, True])
def test_a_graph_that_takes_tensors_from_another_file_is_refused(bundle, toys, nested):
    graph = onnx.load(bundle / "cnn.onnx")
    tensor = graph.graph.initializer[0]
    if nested:  # inside the branch of an If node's subgraph
        branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
        node = onnx.helper.make_node("If", ["c"], [], then_branch=branch, else_branch=branch)
        graph.graph.node.append(node)
        tensor = graph.graph.node[-1].attribute[0].g.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/hostname")
    (bundle / "cnn.onnx").write_bytes(graph.SerializeToString())
    toys.write_manifest(bundle)  # all hashes are right
    error = refused(bundle)
    assert error.code == ("graph_refused" if nested else "bundle_tampered")
    assert ("the operator 'If'" if nested else "cnn.onnx takes tensors from another file") in error.message


def test_a_file_that_is_no_onnx_graph_is_refused_whatever_its_bytes(bundle, toys):
    for junk in (b"", b"\xff" * 40, b"hello, I am not a graph", b"\x3a\xff\xff\xff\xff\x0f"):
        (bundle / "cnn.onnx").write_bytes(junk)
        toys.write_manifest(bundle)
        assert refused(bundle).code == "bad_graph"


def test_graphs_with_all_tensors_inside_pass(bundle):
    for graph in GRAPHS:
        check_graph(bundle / f"{graph}.onnx", graph)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    error = refused(tmp_path)
    assert "bundle.json" in error.message
    assert "flamest-export" in error.fix
