import os
import stat

import msgspec
import pytest
from flamest.agent.identity import make_request
from flamest.base.errors import DataError, IdentityError, SettingsError, StorageError, UsageError
from flamest.coordinator.admin import authority
from flamest.fedproto.tls import TlsFiles, certificate_info, certificate_silo, check_files


@pytest.fixture
def folder(tmp_path):
    authority.init_federation(tmp_path / "fed", ["localhost"], "starter")
    return tmp_path / "fed"


def request(tmp_path, name: str) -> bytes:
    return make_request(name, tmp_path / os.urandom(4).hex()).csr_path.read_bytes()


def enrol(folder, tmp_path, name: str) -> str:
    """Add a silo; the hash of its certificate."""
    hand_over = authority.add_silo(folder, name, request(tmp_path, name))
    return certificate_info((hand_over / "silo.pem").read_bytes(), whose=name).sha256


def test_init_makes_the_servers_files_and_keys_only_the_owner_reads(folder):
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


def test_an_unsigned_request_enrols_no_silo(folder, tmp_path):
    with pytest.raises(IdentityError):
        authority.add_silo(folder, "a", request(tmp_path, "b"))
    with pytest.raises(DataError):
        authority.add_silo(folder, "a", b"nonsense")
    assert authority.read_silos(folder / "silos.json").silos == {}
    assert not (folder / "silos").exists()


def test_a_folder_without_authority_is_not_a_federation(tmp_path):
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


def test_an_unchanged_allow_list_is_not_read_again(folder, monkeypatch):
    allow_list = authority.AllowList(folder / "silos.json")
    monkeypatch.setattr(authority, "read_silos", lambda path: pytest.fail("read again"))
    for _ in range(3):
        assert refusal(allow_list, "a", "x") == "not_enrolled"


def test_an_unreadable_allow_list_admits_no_silo(folder, tmp_path):
    sha256 = enrol(folder, tmp_path, "a")
    allow_list = authority.AllowList(folder / "silos.json")
    allow_list.check("a", sha256)
    (folder / "silos.json").write_text("{")
    with pytest.raises(StorageError, match="not an allow-list"):
        allow_list.check("a", sha256)
    (folder / "silos.json").unlink()
    with pytest.raises(StorageError, match="cannot read the allow-list"):
        allow_list.check("a", sha256)


def test_revoking_an_unknown_silo_names_the_enrolled_ones(folder, tmp_path):
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
    assert certificate_info((folder / "server.pem").read_bytes(), whose="x").names == ("10.0.0.1",)


# --- renewal ---


def handed_over(folder, name: str) -> str:
    path = folder / "silos" / name / "silo.pem"
    return certificate_info(path.read_bytes(), whose=name).sha256


def test_an_old_certificate_stays_valid_until_revoked(folder, tmp_path):
    allow_list = authority.AllowList(folder / "silos.json")
    first = enrol(folder, tmp_path, "a")
    entry = authority.renew_enrolment(folder, "a", None)
    second = handed_over(folder, "a")
    assert (entry.certificate_sha256, set(entry.earlier)) == (second, {first})
    assert [refusal(allow_list, "a", sha256) for sha256 in (first, second, "x")] == [None, None, "old_certificate"]
    authority.revoke_silo(folder, "a")
    assert [refusal(allow_list, "a", sha256) for sha256 in (first, second)] == ["revoked", "revoked"]
    third = enrol(folder, tmp_path, "a")
    refusals = [refusal(allow_list, "a", sha256) for sha256 in (first, second, third)]
    assert refusals == ["old_certificate", "old_certificate", None]


def test_a_renewed_certificate_is_for_the_same_key_and_name(folder, tmp_path):
    made = make_request("a", tmp_path / "a")
    hand_over = authority.add_silo(folder, "a", made.csr_path.read_bytes())
    files = TlsFiles(hand_over / "ca.pem", hand_over / "silo.pem", made.key_path)
    before = check_files(files)
    authority.renew_enrolment(folder, "a", None)
    after = check_files(files)
    assert after.sha256 != before.sha256
    assert after.names == before.names == ("spiffe://flamest/silo/a",)


def test_renewing_with_a_request_takes_its_key(folder, tmp_path):
    first = enrol(folder, tmp_path, "a")
    made = make_request("a", tmp_path / "new")
    authority.renew_enrolment(folder, "a", made.csr_path.read_bytes())
    hand_over = folder / "silos" / "a"
    new = check_files(TlsFiles(hand_over / "ca.pem", hand_over / "silo.pem", made.key_path)).sha256
    allow_list = authority.AllowList(folder / "silos.json")
    assert [refusal(allow_list, "a", sha256) for sha256 in (first, new)] == [None, None]
    with pytest.raises(IdentityError) as error:
        authority.renew_enrolment(folder, "a", request(tmp_path, "b"))
    assert error.value.code == "request_name"


def test_certificates_that_have_ended_leave_the_list_at_the_next_renewal(folder, tmp_path, monkeypatch):
    ended = enrol(folder, tmp_path, "a")
    silos = authority.read_silos(folder / "silos.json").silos
    silos["a"] = authority.Enrolment(ended, silos["a"].added, "2020-01-01T00:00:00Z")
    authority.write_silos(folder / "silos.json", authority.Silos(silos))
    authority.renew_enrolment(folder, "a", None)
    second = handed_over(folder, "a")
    entry = authority.renew_enrolment(folder, "a", None)
    assert set(entry.earlier) == {second}


def test_only_an_enrolled_silo_is_renewed(folder, tmp_path):
    enrol(folder, tmp_path, "a")
    authority.revoke_silo(folder, "a")
    for name in ("a", "b"):
        with pytest.raises(DataError) as error:
            authority.renew_enrolment(folder, name, None)
        assert error.value.code == "unknown_silo"
        assert f"silo add {name}" in error.value.fix


@pytest.mark.parametrize("harm", ["gone", "another's"])
def test_without_the_silos_certificate_a_request_is_required(folder, tmp_path, harm):
    enrol(folder, tmp_path, "a")
    enrol(folder, tmp_path, "b")
    path = folder / "silos" / "a" / "silo.pem"
    path.unlink() if harm == "gone" else path.write_bytes((folder / "silos" / "b" / "silo.pem").read_bytes())
    before = (folder / "silos.json").read_bytes()
    with pytest.raises(DataError) as error:
        authority.renew_enrolment(folder, "a", None)
    assert error.value.code == "no_certificate"
    assert "silo renew a --csr" in error.value.fix
    assert (folder / "silos.json").read_bytes() == before


def test_a_crash_during_renewal_locks_no_silo_out(folder, tmp_path, monkeypatch):
    first = enrol(folder, tmp_path, "a")
    write = authority.write_atomic

    def crash(path, content, **options):
        if path.name == "silo.pem":
            raise StorageError("no space")
        write(path, content, **options)

    monkeypatch.setattr(authority, "write_atomic", crash)
    with pytest.raises(StorageError):
        authority.renew_enrolment(folder, "a", None)
    monkeypatch.undo()
    authority.renew_enrolment(folder, "a", None)
    allow_list = authority.AllowList(folder / "silos.json")
    assert [refusal(allow_list, "a", sha256) for sha256 in (first, handed_over(folder, "a"))] == [None, None]


def test_an_entry_that_was_never_renewed_has_no_earlier_key(folder):
    """Files of earlier versions, and what such a version could still read."""
    old = (
        '{"silos": {"a": {"certificate_sha256": "aa", "added": "2026-01-01T00:00:00Z", '
        '"expires": "2027-01-01T00:00:00Z", "revoked": null}, "b": {"certificate_sha256": "bb", '
        '"added": "2026-01-01T00:00:00Z", "expires": "2027-01-01T00:00:00Z", "revoked": "2026-02-01T00:00:00Z"}}}'
    )
    (folder / "silos.json").write_text(old)
    silos = authority.read_silos(folder / "silos.json")
    assert (authority.enrolled(silos), silos.silos["a"].earlier) == (["a"], {})
    authority.write_silos(folder / "silos.json", silos)
    assert "earlier" not in (folder / "silos.json").read_text()
    assert authority.read_silos(folder / "silos.json") == silos


def test_a_folder_without_an_authority_is_named_with_a_fix(tmp_path):
    with pytest.raises(SettingsError, match=r"holds no ca-key\.pem") as error:
        authority.add_silo(tmp_path, "a", b"")
    assert "--dir" in error.value.fix


@pytest.mark.parametrize("listed", ["by this version", "by an older one"])
def test_a_revoked_key_is_not_enrolled_again(folder, tmp_path, listed):
    made = make_request("a", tmp_path / "a").csr_path.read_bytes()
    authority.add_silo(folder, "a", made)
    authority.revoke_silo(folder, "a")
    if listed == "by an older one":  # which wrote no keys: the certificate in the silo's folder has it
        entry = msgspec.structs.replace(authority.read_silos(folder / "silos.json").silos["a"], keys=())
        authority.write_silos(folder / "silos.json", authority.Silos({"a": entry}))
    with pytest.raises(IdentityError, match="revoked, of silo 'a'") as error:
        authority.add_silo(folder, "a", made)
    assert error.value.code == "revoked_key"
    assert "flamest-agent keygen a" in error.value.fix
    authority.add_silo(folder, "a", make_request("a", tmp_path / "new").csr_path.read_bytes())
    for again in (authority.renew_enrolment, authority.add_silo):
        with pytest.raises((IdentityError, UsageError)):
            again(folder, "a", made)
    authority.revoke_silo(folder, "a")
    assert set(authority.read_silos(folder / "silos.json").revoked_keys.values()) == {"a"}
    assert len(authority.read_silos(folder / "silos.json").revoked_keys) == 2
