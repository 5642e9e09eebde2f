"""Key and certificate files that are none: refused by name, soon, with short messages."""

import os

import pytest
from flamest.base.errors import DataError, FlamestError, SettingsError
from flamest.fedproto.certificates import MAX_PEM, load_certificate, load_key, make_authority
from flamest.fedproto.tls import certificate_silo, read_file


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path)],
)
def test_a_file_of_a_wrong_kind_is_named(tmp_path, make):
    make(tmp_path / "silo.pem")
    with pytest.raises(SettingsError, match=r"silo\.pem"):
        certificate_silo(tmp_path / "silo.pem")


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    (tmp_path / "silo.pem").touch()
    os.truncate(tmp_path / "silo.pem", 60_000_000_000)
    with pytest.raises(SettingsError, match="larger"):
        read_file(tmp_path / "silo.pem")


@pytest.mark.parametrize("load", [load_certificate, load_key])
@pytest.mark.parametrize(
    "pem", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", bytes(MAX_PEM + 1)]
)
def test_bytes_that_are_no_pem_are_refused(load, pem):
    with pytest.raises(DataError):
        load(pem, "it")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # a changed byte may make it negative
def test_changed_bytes_of_a_certificate_end_by_name(tmp_path):
    whole = make_authority().certificate
    for position in range(30, len(whole) - 30, 3):
        data = bytearray(whole)
        data[position] = ord("A") if data[position] != ord("A") else ord("z")
        (tmp_path / "silo.pem").write_bytes(data)
        with pytest.raises(FlamestError) as caught:
            certificate_silo(tmp_path / "silo.pem")
        assert caught.value.exit_code in (65, 77)
        assert len(caught.value.message) < 2000
