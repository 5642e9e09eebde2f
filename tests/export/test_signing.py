"""``keygen`` and ``sign``, and the commands that ask who signed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from flamest.export.cli.main import app
from typer.testing import CliRunner


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def said(result):
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def keys(tmp_path):
    for name in ("ann", "bob"):
        assert run("keygen", name, "--out", tmp_path / "keys").exit_code == 0
    return tmp_path / "keys"


def test_a_key_pair_is_two_small_files_of_which_one_is_secret(tmp_path):
    made = said(run("keygen", "operator", "--out", tmp_path / "keys", "--json"))
    private, public = tmp_path / "keys" / "operator.key", tmp_path / "keys" / "operator.pub"
    assert (made["key"], made["public_key"]) == (str(private), str(public))
    assert private.stat().st_mode & 0o777 == 0o600
    assert made["key_id"] in public.read_text()
    assert public.read_text().splitlines()[-1] == made["text"]
    assert made["text"].startswith("ed25519:")
    assert made["text"].endswith(" operator")
    assert "PRIVATE" not in public.read_text()


def test_a_key_is_never_overwritten(keys):
    before = (keys / "ann.key").read_bytes()
    (keys / "ann.pub").unlink()
    result = run("keygen", "ann", "--out", keys, "--json")
    assert result.exit_code == 74
    assert "is not overwritten" in said(result)["error"]["message"]
    assert (keys / "ann.key").read_bytes() == before
    assert sorted(file.name for file in keys.iterdir()) == ["ann.key", "bob.key", "bob.pub"]


@pytest.mark.parametrize("name", ["Ann", "a b", "../ann", "", "a" * 41])
def test_an_invalid_name_makes_no_key(tmp_path, name):
    assert run("keygen", name, "--out", tmp_path).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_two_signers_in_any_order_and_each_is_enough(bundle, keys):
    first = said(run("sign", bundle, "--key", keys / "bob.key", "--json"))
    both = said(run("sign", bundle, "--key", keys / "ann.key", "--json"))
    assert first["signed_by"] == [first["key_id"]]
    assert set(both["signed_by"]) == {first["key_id"], both["key_id"]}
    for name, identity in (("ann", both["key_id"]), ("bob", first["key_id"])):
        found = said(run("inspect", bundle, "--trusted-key", keys / f"{name}.pub", "--json"))
        assert found["trusted"] == [identity]
        assert set(found["signed_by"]) == set(both["signed_by"])
    again = (bundle / "bundle.sig").read_bytes()
    assert run("sign", bundle, "--key", keys / "bob.key").exit_code == 0
    assert (bundle / "bundle.sig").read_bytes() == again


def test_sign_prints_the_silos_next_step_and_inspect_the_signers(bundle, keys):
    shown = run("sign", bundle, "--key", keys / "ann.key").stdout
    assert 'next: give ann.pub to the silos, for agent.toml: trusted_keys = ["ann.pub"]' in shown
    assert "not checked against a trusted key" in run("inspect", bundle).stdout
    assert "not checked against" not in run("inspect", bundle, "--trusted-key", keys / "ann.pub").stdout


def test_a_signature_changes_neither_fingerprint_nor_manifest(bundle, keys):
    before = (bundle / "bundle.json").read_bytes()
    run("sign", bundle, "--key", keys / "ann.key")
    assert (bundle / "bundle.json").read_bytes() == before


@pytest.mark.parametrize("command", ["inspect", "verify", "bench"])
def test_a_bundle_that_no_trusted_key_signed_is_refused(bundle, keys, command):
    unsigned = run(command, bundle, "--trusted-key", keys / "ann.pub", "--json")
    assert (unsigned.exit_code, said(unsigned)["error"]["code"]) == (65, "UNTRUSTED")
    run("sign", bundle, "--key", keys / "bob.key")
    strange = run(command, bundle, "--trusted-key", keys / "ann.pub", "--json")
    assert (strange.exit_code, said(strange)["error"]["code"]) == (65, "UNTRUSTED")
    assert "(ann)" in said(strange)["error"]["message"]


def test_verify_names_the_signers(bundle, keys, monkeypatch):
    from flamest.export.parity.verification import BundleVerifier

    for comparison in ("vision_language", "keyframes", "spatio_temporal"):
        monkeypatch.setattr(BundleVerifier, comparison, lambda self: None)
    run("sign", bundle, "--key", keys / "ann.key")
    key = (keys / "ann.pub").read_text().splitlines()[-1]
    result = run("verify", bundle, "--threads", "1", "--trusted-key", key)
    assert result.exit_code == 0, result.output
    assert "(ann)" in result.stdout


def test_a_changed_bundle_is_not_signed(bundle, keys):
    (bundle / "cnn.onnx").write_bytes(b"x")
    result = run("sign", bundle, "--key", keys / "ann.key", "--json")
    assert (result.exit_code, said(result)["error"]["code"]) == (65, "bundle_tampered")
    assert not (bundle / "bundle.sig").exists()


def test_a_bundle_changed_after_signing_is_not_signed_again(bundle, keys):
    run("sign", bundle, "--key", keys / "ann.key")
    (bundle / "bundle.json").write_bytes((bundle / "bundle.json").read_bytes() + b" ")
    result = run("sign", bundle, "--key", keys / "bob.key", "--json")
    assert (result.exit_code, said(result)["error"]["code"]) == (65, "UNTRUSTED")
    assert "bundle.sig" in said(result)["error"]["fix"]


def test_a_private_key_that_others_can_read_is_refused(bundle, keys):
    (keys / "ann.key").chmod(0o644)
    result = run("sign", bundle, "--key", keys / "ann.key", "--json")
    assert result.exit_code == 78
    assert "chmod 600" in said(result)["error"]["fix"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_private_key_is_refused(bundle, tmp_path, content):
    file = tmp_path / "x.key"
    file.write_bytes(content)
    file.chmod(0o600)
    assert run("sign", bundle, "--key", file, "--json").exit_code == 78
    assert run("sign", bundle, "--key", tmp_path / "none.key").exit_code == 78


def test_a_key_of_another_kind_is_refused(bundle, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    file = tmp_path / "p256.key"
    file.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    file.chmod(0o600)
    result = run("sign", bundle, "--key", file, "--json")
    assert "another kind" in said(result)["error"]["message"]


def test_inspect_works_without_the_package_that_checks_signatures(bundle, keys):
    """The base install has no cryptography: inspect reports that, unless a key is required."""
    run("sign", bundle, "--key", keys / "ann.key")
    code = "import sys\nsys.modules['cryptography'] = None\nfrom flamest.export.cli.main import app\napp(sys.argv[1:])"
    command = [sys.executable, "-c", code, "inspect", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not checked: pip install cryptography" in done.stdout
    asked = [*command, "--trusted-key", str(keys / "ann.pub")]
    assert subprocess.run(asked, capture_output=True, check=False).returncode == 78
