import os
import stat

import pytest
from flamest.agent.keys import make_request
from flamest.base.errors import DataError, IdentityError, SettingsError, StorageError, UsageError
from flamest.coordinator import authority
from flamest.fedproto.tls import TlsFiles, certificate_silo, check_files, read_facts


@pytest.fixture
def folder(tmp_path):
    authority.init_federation(tmp_path / "fed", ["localhost"], "starter")
    return tmp_path / "fed"


def request(tmp_path, name: str) -> bytes:
    return make_request(name, tmp_path / os.urandom(4).hex()).csr_path.read_bytes()


def enrol(folder, tmp_path, name: str) -> str:
    """Add a silo; the hash of its certificate."""
    hand_over = authority.add_silo(folder, name, request(tmp_path, name))
    return read_facts((hand_over / "silo.pem").read_bytes(), whose=name).sha256


def test_init_makes_what_the_server_needs_and_keys_that_only_the_owner_reads(folder):
    check_files(TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem"))
    for key in ("ca-key.pem", "server-key.pem"):
        assert stat.S_IMODE((folder / key).stat().st_mode) == 0o600
    assert authority.read_silos(folder / "silos.json").silos == {}


def test_init_overwrites_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StorageError, match="exists already"):
        authority.init_federation(folder, ["localhost"], "starter")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failed_init_leaves_nothing(tmp_path):
    with pytest.raises(UsageError):
        authority.init_federation(tmp_path / "fed", ["not a host"], "starter")
    assert list(tmp_path.iterdir()) == []


def test_a_silo_gets_its_certificate_and_the_authoritys(folder, tmp_path):
    hand_over = authority.add_silo(folder, "a", request(tmp_path, "a"))
    assert {path.name for path in hand_over.iterdir()} == {"silo.pem", "ca.pem"}
    assert certificate_silo(hand_over / "silo.pem") == "a"
    assert (hand_over / "ca.pem").read_bytes() == (folder / "ca.pem").read_bytes()


def test_an_enrolled_name_is_not_given_again(folder, tmp_path):
    first = enrol(folder, tmp_path, "a")
    with pytest.raises(UsageError, match="enrolled already"):
        enrol(folder, tmp_path, "a")
    authority.AllowList(folder / "silos.json").check("a", first)


def test_a_request_that_cannot_be_signed_enrols_no_one(folder, tmp_path):
    with pytest.raises(IdentityError):
        authority.add_silo(folder, "a", request(tmp_path, "b"))
    with pytest.raises(DataError):
        authority.add_silo(folder, "a", b"nonsense")
    assert authority.read_silos(folder / "silos.json").silos == {}
    assert not (folder / "silos").exists()


def test_another_folder_is_no_federation(tmp_path):
    with pytest.raises(SettingsError, match=r"ca-key\.pem"):
        authority.add_silo(tmp_path, "a", request(tmp_path, "a"))


def refusal(allow_list, name: str, sha256: str) -> str | None:
    try:
        allow_list.check(name, sha256)
    except IdentityError as error:
        return error.code
    return None


def test_the_allow_list_follows_the_file_without_a_restart(folder, tmp_path):
    allow_list = authority.AllowList(folder / "silos.json")
    assert refusal(allow_list, "a", "x") == "not_enrolled"
    first = enrol(folder, tmp_path, "a")
    assert refusal(allow_list, "a", first) is None
    assert len(allow_list.names()) == 1
    authority.revoke_silo(folder, "a")
    assert refusal(allow_list, "a", first) == "revoked"
    assert not allow_list.names()
    second = enrol(folder, tmp_path, "a")
    assert refusal(allow_list, "a", second) is None
    assert refusal(allow_list, "a", first) == "old_certificate"


def test_while_the_file_stays_the_same_it_is_not_read_again(folder, monkeypatch):
    allow_list = authority.AllowList(folder / "silos.json")
    monkeypatch.setattr(authority, "read_silos", lambda path: pytest.fail("read again"))
    for _ in range(3):
        assert refusal(allow_list, "a", "x") == "not_enrolled"


def test_an_allow_list_that_cannot_be_read_lets_no_one_in(folder, tmp_path):
    sha256 = enrol(folder, tmp_path, "a")
    allow_list = authority.AllowList(folder / "silos.json")
    allow_list.check("a", sha256)
    (folder / "silos.json").write_text("{")
    with pytest.raises(StorageError, match="not an allow-list"):
        allow_list.check("a", sha256)
    (folder / "silos.json").unlink()
    with pytest.raises(StorageError, match="cannot read the allow-list"):
        allow_list.check("a", sha256)


def test_revoking_a_stranger_names_who_is_enrolled(folder, tmp_path):
    enrol(folder, tmp_path, "a")
    with pytest.raises(DataError, match="enrolled: a"):
        authority.revoke_silo(folder, "b")


def test_the_server_certificate_is_renewed_for_the_same_key_and_names(folder):
    before = (folder / "server.pem").read_bytes()
    authority.renew_server(folder, [])
    facts = check_files(TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem"))
    assert facts.names == ("localhost",)
    assert (folder / "server.pem").read_bytes() != before
    authority.renew_server(folder, ["10.0.0.1"])
    assert read_facts((folder / "server.pem").read_bytes(), whose="x").names == ("10.0.0.1",)
