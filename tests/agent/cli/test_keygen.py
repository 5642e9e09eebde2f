"""``flamest-agent keygen``: the silo's private key and the request for its certificate."""

import stat

import pytest
from flamest.agent.identity import make_request
from flamest.base.errors import StorageError, UsageError
from flamest.fedproto.certificates import make_authority, sign_silo


def test_the_key_is_read_by_its_owner_only_and_never_overwritten(tmp_path):
    made = make_request("a", tmp_path / "new")
    assert stat.S_IMODE(made.key_path.stat().st_mode) == 0o600
    before = made.key_path.read_bytes()
    with pytest.raises(StorageError, match="exists already"):
        make_request("a", tmp_path / "new")
    assert made.key_path.read_bytes() == before
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"a.key", "a.csr"}


def test_the_request_can_be_signed(tmp_path):
    made = make_request("a", tmp_path)
    assert b"BEGIN CERTIFICATE" in sign_silo(make_authority(), "a", made.csr_path.read_bytes())


def test_an_invalid_silo_name_leaves_no_file(tmp_path):
    with pytest.raises(UsageError):
        make_request("../a", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        make_request("a", tmp_path / "file" / "sub")
