"""The page of versions, compared with the numbers in the code."""

from __future__ import annotations

import re
from pathlib import Path

from flamest.agent.extraction.store_schema import FEATURE_STORE
from flamest.coordinator.storage.database import SCHEMA as DATABASE
from flamest.fedproto.model_file import FORMAT as MODEL
from flamest.fedproto.records import PROTOCOL
from flamest.runtime.bundle.manifest import SCHEMA as BUNDLE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "versions.md"


def test_the_page_of_versions_has_the_numbers_of_the_code():
    rows = re.findall(r"^\| ([a-z' ]+?)(?: \(.*?\))? \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert {what: int(number) for what, number in rows} == {
        "feature store": FEATURE_STORE.version,
        "coordinator's database": DATABASE.version,
        "model file": MODEL,
        "bundle": BUNDLE,
        "wire protocol": PROTOCOL,
    }
