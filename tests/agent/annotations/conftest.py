"""Reading of JSON exports, for the tests of their formats."""

from __future__ import annotations

import json

import pytest
from flamest.agent.annotations.reading import ReadingOptions, read_annotations
from flamest.base.errors import DataError


def read_json(tmp_path, content, **options):
    """Read a file with this content: bytes as they are, anything else as JSON."""
    path = tmp_path / "export.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_annotations(path, ReadingOptions(**options))


def check_refused(tmp_path, content, code, **options):
    """Check that the file is refused with this code, and a way out."""
    with pytest.raises(DataError) as raised:
        read_json(tmp_path, content, **options)
    assert raised.value.code == code
    assert raised.value.fix
    return raised.value
