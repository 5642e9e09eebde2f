"""Extraction keeps the precision of a store's features, or fails; it never changes silently."""

import dataclasses
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from flamest.agent.extraction import extract, networks_on_demand, precision_policy
from flamest.agent.extraction.extract import clips_to_extract, extract_clips
from flamest.agent.extraction.report import ExtractRequest
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.tasks import extract_new
from flamest.base.errors import SettingsError
from flamest.runtime.autotune import selection
from flamest.runtime.autotune.measurements import Choice
from flamest.runtime.backends import opening
from flamest.runtime.backends.options import parse_backend_options
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.clip_records import Caption, Clip, ClipFeatures

BOTH = {"onnxruntime": "1", "openvino": "1"}


@pytest.fixture
def silo(clips, toy_bundle, tmp_path, monkeypatch):
    """A folder with one clip, and a store with given contents; networks are not opened."""
    clips.write_clip(tmp_path / "videos" / "wave" / "0.avi", frames=12)
    return Silo(toy_bundle, tmp_path, monkeypatch)


class Silo:
    def __init__(self, bundle, folder, monkeypatch):
        self.bundle, self.folder, self._monkeypatch = bundle, folder, monkeypatch
        self.fingerprint = read_manifest(bundle).fingerprint
        self.store = folder / "s.sqlite"
        self.notices = []
        monkeypatch.setattr(
            networks_on_demand,
            "open_extractor",
            lambda _, **opened: FakeExtractor(self, opened["opening"].backend_options),
        )
        self.be(versions=BOTH, bf16=True)

    def be(self, **changes):
        facts = dataclasses.replace(opening.gather_facts(), gpu=None, **changes)
        for module in (selection, opening):
            self._monkeypatch.setattr(module, "machine_facts", lambda: facts)

    def hold(self, *precisions, clip="0" * 64):
        rows = [
            FeatureRow(Clip(Path("old.avi"), clip, "wave"), np.ones(2, np.float32), 0, self.fingerprint, precision)
            for precision in precisions
        ]
        with FeatureStore.open(self.store) as store:
            store.add_rows([("old.avi", row) for row in rows])

    def extract(self, *words, precision=None, **more):
        backend_options = parse_backend_options(words, precision=precision)
        request = ExtractRequest(
            self.bundle, self.folder / "videos", self.store, backend_options=backend_options, **more
        )
        folder = clips_to_extract(request.videos)
        return extract_clips(request, folder, on_clip=lambda: None, stop=lambda: False, notice=self.notices.append)

    def kinds(self):
        with FeatureStore.open(self.store) as store:
            return {kind.precision: kind.clips for kind in store.kinds()}


class FakeExtractor:
    decoder_peak_mb = 0.0
    pipeline = MappingProxyType({})
    crashes = ()

    def __init__(self, silo, backend_options):
        self.placements = {}
        self._silo = silo
        self._precision = opening.effective_precision(read_manifest(silo.bundle), backend_options)

    def extract_all(self, clips, *, stop):
        for clip in clips:
            x = np.ones(1, np.float32)
            features = ClipFeatures(x, x, Caption("", ()), -1, (), self._silo.fingerprint, self._precision)
            yield extract.ExtractionResult(clip, features)

    def close(self):
        pass


def test_a_store_of_one_precision_is_followed_with_a_warning(silo):
    silo.hold("bf16")
    report = silo.extract()
    assert (report.precision, report.used_stored_precision, silo.kinds()) == ("bf16", True, {"bf16": 2})
    assert [line.startswith("warning: new clips are computed in bf16, like the features") for line in silo.notices] == [
        True
    ]
    assert 'precision = "bf16" under [work] of agent.toml' in silo.notices[0]
    again = silo.extract()
    assert (again.extracted, again.skipped, again.precision, again.used_stored_precision) == (0, 1, "bf16", False)
    assert len(silo.notices) == 1


def test_the_daemon_learns_that_the_store_precision_was_used(silo):
    silo.hold("bf16")
    request = ExtractRequest(silo.bundle, silo.folder / "videos", silo.store)
    done = extract_new(request)
    assert (done.used_stored_precision, done.figures["precision"]) == (True, "bf16")
    assert not extract_new(request).used_stored_precision  # nothing was computed


def test_a_store_is_followed_with_openvino_and_no_other_named_backend(silo):
    silo.hold("bf16")
    assert silo.extract("openvino").precision == "bf16"
    assert silo.extract("onnxruntime").precision == "fp32"
    assert "holds bf16 features of this bundle, those of new clips are fp32" in silo.notices[-1]


def test_a_store_of_several_precisions_is_not_followed(silo):
    silo.hold("bf16", "fp32")
    assert (silo.extract().precision, silo.notices) == ("fp32", [])


def test_a_precision_that_cannot_be_followed_is_an_error(silo):
    silo.hold("bf16")
    silo.be(versions={"onnxruntime": "1"})
    with pytest.raises(SettingsError, match="no package openvino is installed") as caught:
        silo.extract()
    assert caught.value.code == "held_precision"
    assert silo.kinds() == {"bf16": 1}


def test_auto_keeps_the_stores_precision_or_fails(silo):
    silo.hold("bf16")
    report = silo.extract(precision="auto")
    assert (report.precision, report.choice.chosen, silo.kinds()) == ("bf16", "openvino bf16", {"bf16": 2})
    silo.be(versions={"onnxruntime": "1"})
    known = silo.extract(precision="auto")  # nothing to compute: nothing to refuse
    assert (known.extracted, known.precision, known.choice) == (0, "bf16", None)
    (silo.folder / "videos" / "wave" / "1.avi").write_bytes(b"another")
    with pytest.raises(SettingsError) as caught:
        silo.extract(precision="auto")
    assert caught.value.code == "held_precision"
    assert silo.kinds() == {"bf16": 2}


def test_auto_measures_only_if_there_is_a_clip_to_extract(silo, monkeypatch):
    asked = []

    def choose(request, clips, *, notice, stop):
        asked.append((request.stored_precision, request.fallback_folder, [clip.path.name for clip in clips]))
        return Choice("openvino bf16", "quickest")

    monkeypatch.setattr(precision_policy, "autotune_backends", choose)
    report = silo.extract(precision="auto")
    assert (report.extracted, report.precision, silo.kinds()) == (1, "bf16", {"bf16": 1})
    assert silo.extract(precision="auto").choice is None
    assert asked == [(None, silo.folder / "s.sqlite.choices", ["0.avi"])]


def test_the_precision_for_training_is_kept(silo):
    silo.hold("bf16")
    assert silo.extract(training_precision="fp32").precision == "fp32"
    assert silo.extract(precision="auto", training_precision="bf16").precision == "bf16"
