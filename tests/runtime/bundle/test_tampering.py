"""Any change to any file of a signed bundle is refused before anything parses the file.

No parser and no runtime can be imported here, and PyAV cannot either: a check that came too late would
end in another error. The last test shows that this bites.
"""

import hashlib
import os
import shutil
import sys

import msgspec
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flamest.base.errors import DataError, FlamestError, MissingExtra
from flamest.runtime.bundle.manifest import FileEntry, encode_manifest
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.bundle.signature import SIGNATURE_FILE, PublicKey, format_signatures, sign_manifest
from flamest.runtime.extractor import open_extractor

OPERATOR, STRANGER = bytes([7]) * 32, bytes([8]) * 32
TRUSTED = (PublicKey(Ed25519PrivateKey.from_private_bytes(OPERATOR).public_key().public_bytes_raw(), "operator"),)
FILES = (
    "bundle.json",
    "bundle.sig",
    "LICENCES.txt",
    "tokenizer.json",
    "vision.onnx",
    "text.onnx",
    "cnn.onnx",
    "keyframes.onnx",
    "plans/vision.plan",
)
PARSERS = ("onnx", "onnxruntime", "tokenizers", "tensorrt", "tensorrt_lean", "openvino", "sklearn", "av", "PIL")
LISTED = FILES[2:]  # in the manifest


def sign(bundle, private=OPERATOR):
    signature = sign_manifest((bundle / "bundle.json").read_bytes(), private)
    (bundle / SIGNATURE_FILE).write_bytes(format_signatures([signature]))


def rewrite(bundle, **changes):
    """The manifest with other contents, signed by the operator: the signature alone does not help."""
    manifest = msgspec.structs.replace(read_manifest(bundle), **changes)
    (bundle / "bundle.json").write_bytes(encode_manifest(manifest))
    sign(bundle)


@pytest.fixture(scope="module")
def signed_bundle(toys, tmp_path_factory):
    """Not to be changed: a toy bundle with every kind of file that a bundle can hold."""
    bundle = toys.write_bundle(tmp_path_factory.mktemp("signed") / "bundle")
    (bundle / "LICENCES.txt").write_text("none\n")
    (bundle / "plans").mkdir()
    (bundle / "plans" / "vision.plan").write_bytes(b"ftrt" + bytes(200))
    toys.write_manifest(bundle)
    sign(bundle)
    return bundle


@pytest.fixture(scope="module")
def older_bundle(toys, tmp_path_factory):
    """The operator signed this one too; every file of it is another."""
    older = toys.write_bundle(tmp_path_factory.mktemp("signed") / "older", seed=2)
    (older / "LICENCES.txt").write_text("others\n")
    (older / "plans").mkdir()
    (older / "plans" / "vision.plan").write_bytes(b"ftrt" + bytes(100))
    tokenizer = older / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("word1", "word-1"))
    toys.write_manifest(older)
    sign(older)
    return older


@pytest.fixture
def bundle(signed_bundle, tmp_path):
    return shutil.copytree(signed_bundle, tmp_path / "bundle")


@pytest.fixture
def no_parser(monkeypatch):
    for name in PARSERS:
        monkeypatch.setitem(sys.modules, name, None)


def refused(bundle):
    with pytest.raises(FlamestError) as caught:
        open_extractor(bundle, trusted=TRUSTED)
    assert isinstance(caught.value, DataError), caught.value.message
    assert caught.value.exit_code == 65
    assert caught.value.code in ("UNTRUSTED", "bundle_tampered", "bad_data"), caught.value.message
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_refused_before_a_parser(bundle, no_parser, name, place):
    data = bytearray((bundle / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[place]] ^= 0x10
    (bundle / name).write_bytes(data)
    error = refused(bundle)
    assert error.code == ("UNTRUSTED" if name in FILES[:2] else "bundle_tampered")
    assert name in error.message


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_before_a_parser(bundle, no_parser, name):
    (bundle / name).unlink()
    assert refused(bundle).code == {"bundle.json": "bad_data", "bundle.sig": "UNTRUSTED"}.get(name, "bundle_tampered")


@pytest.mark.parametrize("name", ["more.onnx", "plans/cnn.plan", ".hidden", "bundle.sig.old"])
def test_an_extra_file_is_refused_before_a_parser(bundle, no_parser, name):
    (bundle / name).write_bytes(b"x")
    error = refused(bundle)
    assert error.code == "bundle_tampered"
    assert f"{name} is not in the manifest" in error.message


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_any_file_is_refused_before_a_parser(bundle, no_parser, name, kind):
    """Its content is right: whoever owns the other name could change it at any time."""
    outside = bundle.parent / "outside"
    shutil.move(bundle / name, outside)
    if kind == "symlink":
        (bundle / name).symlink_to(outside)
    else:
        os.link(outside, bundle / name)
    error = refused(bundle)
    assert error.code == "bundle_tampered"
    assert name in error.message
    assert "link" in error.message


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("form", ["../{}", "/tmp/{}", "plans/../../{}", "plans\\{}", "./{}", "a\0{}"])
def test_a_signed_name_outside_the_folder_is_refused(bundle, no_parser, name, form):
    manifest = read_manifest(bundle)
    outside = form.format(name)
    files = {(outside if listed == name else listed): entry for listed, entry in manifest.files.items()}
    rewrite(bundle, files=files)
    error = refused(bundle)
    assert error.code == "bundle_tampered"
    assert "not a plain name" in error.message


@pytest.mark.parametrize("name", ["bundle.json", "bundle.sig"])
def test_a_manifest_that_lists_itself_or_its_signatures_is_refused(bundle, no_parser, name):
    rewrite(bundle, files={**read_manifest(bundle).files, name: FileEntry("0" * 64, 1)})
    assert "not a plain name" in refused(bundle).message


@pytest.mark.parametrize("name", [name for name in LISTED if name.endswith(".onnx")])
def test_a_signed_graph_with_external_data_is_refused(bundle, monkeypatch, name):
    graph = onnx.load(bundle / name)
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside.bin")
    data = graph.SerializeToString()
    (bundle / name).write_bytes(data)
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    rewrite(bundle, files={**read_manifest(bundle).files, name: entry})
    for parser in PARSERS:
        monkeypatch.setitem(sys.modules, parser, None)
    assert f"{name} takes tensors from another file" in refused(bundle).message


@pytest.mark.parametrize("name", FILES)
def test_the_same_file_of_an_older_version_is_refused_before_a_parser(bundle, older_bundle, no_parser, name):
    assert (older_bundle / name).read_bytes() != (bundle / name).read_bytes()
    shutil.copyfile(older_bundle / name, bundle / name)
    assert refused(bundle).code == ("UNTRUSTED" if name in FILES[:2] else "bundle_tampered")


def test_manifest_and_signature_of_an_older_version_do_not_fit_the_files(bundle, older_bundle, no_parser):
    for name in ("bundle.json", "bundle.sig"):
        shutil.copyfile(older_bundle / name, bundle / name)
    assert refused(bundle).code == "bundle_tampered"


@pytest.mark.parametrize("signer", [None, STRANGER])
def test_a_bundle_without_trusted_signature_is_not_decoded(bundle, no_parser, signer):
    (bundle / "bundle.json").write_bytes(b"\xff not JSON")
    (bundle / "bundle.sig").unlink()
    if signer is not None:
        sign(bundle, signer)
    assert refused(bundle).code == "UNTRUSTED"


@pytest.mark.parametrize("change", ["replaced", "written"])
@pytest.mark.parametrize("name", LISTED)
def test_a_file_that_changes_after_hashing_is_not_used(bundle, name, change):
    opened = open_bundle(bundle, TRUSTED)
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    if change == "replaced":  # the old file lives on, whoever has it open
        (bundle / "new").write_bytes(data)
        os.replace(bundle / "new", bundle / name)
    else:
        before = (bundle / name).stat()
        (bundle / name).write_bytes(data)
        os.utime(bundle / name, ns=(before.st_atime_ns, before.st_mtime_ns))  # what an attacker would do
    with pytest.raises(DataError, match=f"{name} has .* not those of the manifest"):
        opened.read(name)
    if name.endswith(".onnx"):
        with pytest.raises(DataError, match=f"{name} has .* not those of the manifest"):
            with opened.private_graph(name.removesuffix(".onnx")):
                pass


def test_what_is_read_is_what_was_hashed(bundle):
    opened = open_bundle(bundle, TRUSTED)
    assert opened.read("plans/vision.plan") == (bundle / "plans" / "vision.plan").read_bytes()
    assert [signer.name for signer in opened.signers] == ["operator"]


def test_an_untouched_bundle_reaches_the_parsers(bundle, no_parser):
    with pytest.raises(MissingExtra):
        open_extractor(bundle, trusted=TRUSTED)


def test_an_untouched_signed_bundle_opens(bundle):
    with open_extractor(bundle, threads=1, trusted=TRUSTED) as extractor:
        assert extractor.manifest.width == 9
