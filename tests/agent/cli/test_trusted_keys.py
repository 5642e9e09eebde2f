"""With trusted keys, the silo opens only bundles that one of them has signed."""

import json
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flamest.agent.cli.main import app
from flamest.agent.settings import check_environment, load_agent_settings
from flamest.base.errors import DataError, SettingsError
from flamest.runtime.bundle.signature import PublicKey, format_signatures, sign_manifest
from typer.testing import CliRunner

OPERATOR, STRANGER = bytes([7]) * 32, bytes([8]) * 32


def public(private, name):
    return PublicKey(Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw(), name)


def sign(bundle, private):
    signature = sign_manifest((bundle / "bundle.json").read_bytes(), private)
    (bundle / "bundle.sig").write_bytes(format_signatures([signature]))


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


@pytest.fixture
def key(tmp_path):
    file = tmp_path / "operator.pub"
    file.write_text(f"# a remark\n{public(OPERATOR, 'operator').text}\n")
    return file


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("signer", [None, STRANGER])
def test_extract_refuses_a_bundle_that_no_trusted_key_signed(clips, bundle, key, tmp_path, signer):
    clips.write_clip(tmp_path / "videos" / "wave" / "0.avi", frames=12)
    if signer is not None:
        sign(bundle, signer)
    store = tmp_path / "features.sqlite"
    words = ("extract", "--bundle", bundle, "--videos", tmp_path / "videos", "--store", store, "--json")
    code, output = run(*words, "--trusted-key", key)
    assert (code, output["error"]["code"]) == (65, "UNTRUSTED")
    assert "(operator)" in output["error"]["message"]
    assert not store.exists()


def test_extract_accepts_a_bundle_that_the_trusted_key_signed(clips, bundle, key, tmp_path):
    clips.write_clip(tmp_path / "videos" / "wave" / "0.avi", frames=12)
    sign(bundle, OPERATOR)
    words = ("extract", "--bundle", bundle, "--videos", tmp_path / "videos", "--store", tmp_path / "f.sqlite")
    code, output = run(*words, "--trusted-key", key, "--threads", "1", "--json")
    assert (code, output["extracted"]) == (0, 1)


def test_predict_refuses_a_bundle_that_no_trusted_key_signed(bundle, key, tmp_path):
    from flamest.fedproto.head import HeadSpec, initial_params
    from flamest.fedproto.model_file import ModelFile, write_model
    from flamest.runtime.bundle.manifest_reading import read_manifest

    head = HeadSpec(inputs=9, outputs=2, hidden=(4,))
    model = tmp_path / "model.safetensors"
    fingerprint = read_manifest(bundle).fingerprint
    write_model(model, ModelFile(head, initial_params(head, 0), ("a", "b"), fingerprint))
    words = ("predict", tmp_path / "x.avi", "--bundle", bundle, "--model", model, "--json")
    code, output = run(*words, "--trusted-key", key)
    assert (code, output["error"]["code"]) == (65, "UNTRUSTED")


def settings_file(folder, *lines):
    file = folder / "agent.toml"
    text = 'state = "state"\nstore = "features.sqlite"\nbundle = "bundle"\nvideos = "videos"\n' + "\n".join(lines)
    file.write_text(f'{text}\n[coordinator]\naddress = "h:1"\nca = "c"\ncertificate = "s"\nkey = "k"\n')
    return file


def test_keys_in_the_settings_are_relative_files_or_texts(key, tmp_path):
    text = public(STRANGER, "other").text
    settings = load_agent_settings(settings_file(tmp_path, f'trusted_keys = ["operator.pub", "{text}"]'))
    assert settings.trust() == (public(OPERATOR, "operator"), public(STRANGER, "other"))
    more = load_agent_settings(settings_file(tmp_path, 'trusted_keys = ["operator.pub"]'), also_trusted=(text,))
    assert more.trust() == settings.trust()
    assert load_agent_settings(settings_file(tmp_path)).trust() == ()


@pytest.mark.parametrize("entry", ["none.pub", "ed25519:AAAA"])
def test_an_unreadable_key_is_an_error_when_the_settings_are_loaded(tmp_path, entry):
    with pytest.raises(SettingsError, match="trusted_keys: "):
        load_agent_settings(settings_file(tmp_path, f'trusted_keys = ["{entry}"]'))


def test_check_config_verifies_the_bundles_signature(bundle, key, tmp_path, monkeypatch):
    monkeypatch.setattr("flamest.agent.settings.check_files", lambda files: None)
    monkeypatch.setattr("flamest.agent.settings.check_enrolled", lambda connection: None)
    (tmp_path / "videos").mkdir()
    settings = load_agent_settings(settings_file(tmp_path, 'trusted_keys = ["operator.pub"]'))
    with pytest.raises(DataError, match="it is not signed"):
        check_environment(settings)
    sign(bundle, OPERATOR)
    check_environment(settings)


def test_the_daemons_extraction_uses_the_keys_of_its_settings(bundle, key, clips, tmp_path):
    """The request that is sent to the worker process includes the keys."""
    import pickle

    from flamest.agent.extraction.report import ExtractRequest
    from flamest.agent.tasks import extract_new

    clips.write_clip(tmp_path / "videos" / "wave" / "0.avi", frames=12)
    settings = load_agent_settings(settings_file(tmp_path, 'trusted_keys = ["operator.pub"]'))
    request = ExtractRequest(settings.bundle, settings.videos, settings.store, threads=1, trusted=settings.trust())
    with pytest.raises(DataError) as caught:
        extract_new(pickle.loads(pickle.dumps(request)))
    assert caught.value.code == "UNTRUSTED"
