"""An engine's version is read without TensorRT, and decides where it may run."""

import pytest
from flamest.base.errors import DataError, StorageError
from flamest.runtime.backends.tensorrt.engine import Version, engine_version, version_problem


def header(version=(10, 16, 1, 11), tag=b"ftrt", serialisation=0):
    return tag + serialisation.to_bytes(4, "little") + bytes(16) + bytes(version) + b"native code"


def test_the_version_is_read_from_bytes_and_from_a_file(tmp_path):
    (tmp_path / "x.plan").write_bytes(header())
    assert engine_version(header()) == engine_version(tmp_path / "x.plan") == Version(10, 16, 1, 11)
    assert str(engine_version(header())) == "10.16.1.11"


@pytest.mark.parametrize(
    ("data", "evidence"),
    [
        (b"", "has 0 bytes"),
        (header()[:27], "has 27 bytes"),
        (header(tag=b"trtf"), "begins with b'trtf'"),
        (b"\x89PNG" + header()[4:], "expected b'ftrt'"),
        (header(serialisation=1), "serialisation version 1"),
    ],
)
def test_a_file_that_does_not_begin_as_an_engine_is_refused(tmp_path, data, evidence):
    (tmp_path / "x.plan").write_bytes(data)
    with pytest.raises(DataError, match=evidence) as caught:
        engine_version(tmp_path / "x.plan")
    assert caught.value.code == "PLAN_HEADER"
    assert "x.plan" in caught.value.message


def test_an_engine_that_cannot_be_read_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        engine_version(tmp_path / "none.plan")


@pytest.mark.parametrize("text", ["10.3", "", "newest", "10.x.1"])
def test_an_invalid_version_is_refused(text):
    with pytest.raises(ValueError, match=r"version|invalid literal"):
        Version.parse(text)


@pytest.mark.parametrize(
    ("built", "here", "version_compatible", "problem"),
    [
        ("10.16.1.11", "10.16.1.11", False, ""),
        ("10.3.0.26", "10.3.0", False, ""),  # the package does not know its library's build
        ("10.3.0.26", "10.3.0.30", False, "not built with --version-compatible"),
        ("10.3.0.26", "10.16.1.11", False, "not built with --version-compatible"),
        ("10.3.0.26", "10.16.1.11", True, ""),
        ("10.16.1.11", "10.3.0.26", True, "the older 10.3.0.26"),
        ("10.3.0.26", "11.4.0.106", True, ""),
        ("11.4.0.106", "10.16.1.11", True, "another major version"),
        ("8.6.1.6", "10.3.0.26", True, "another major version"),
        ("11.4.0.106", "12.0.0.1", True, "another major version"),
    ],
)
def test_versions_that_may_run_an_engine(built, here, version_compatible, problem):
    found = version_problem(Version.parse(built), Version.parse(here), version_compatible=version_compatible)
    assert bool(found) == bool(problem)
    assert problem in found
