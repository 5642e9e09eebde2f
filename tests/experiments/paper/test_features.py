"""Features of an experiment: stores joined by clip, pairs, missing extractors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureStore
from flamest.base.errors import DataError, UsageError
from flamest.experiments.paper import paper_tables
from flamest.experiments.paper.features import FeatureSource, open_features, untrained_marker
from flamest.experiments.paper.inputs import OTHER, ExperimentInputs, Settings
from flamest.experiments.paper.splits import SplitRule
from flamest.fedproto.records import TrainSettings

QUICK = TrainSettings(epochs=1, batch_size=64, learning_rate=0.01)


def test_a_pair_concatenates_its_extractors_joined_by_clip(inputs: ExperimentInputs) -> None:
    data = inputs.data
    both = data.x("blip+slow")
    assert np.array_equal(both, np.concatenate([data.x("blip"), data.x("slow")], axis=1))
    assert data.widths("blip+slow") == (6, 5)
    assert [note.label for note in data.clips] == [data.labels[number] for number in data.y]
    assert list(data.clips) == sorted(data.clips, key=lambda note: note.sha256)


def test_a_store_of_the_pair_is_split_into_blip_and_slow(
    folder: Path, tmp_path: Path, inputs: ExperimentInputs
) -> None:
    from flamest.agent.extraction.store import FeatureRow
    from flamest.runtime.clip_records import Clip

    x = inputs.data.x("blip+slow")
    with FeatureStore.open(tmp_path / "pair.sqlite") as store:
        store.add_rows(
            (note.path, FeatureRow(Clip(Path(note.path), note.sha256, note.label, note.group), x[row], 6, "f", "fp32"))
            for row, note in enumerate(inputs.data.clips)
        )
    pair = open_features(FeatureSource(store=tmp_path / "pair.sqlite"))
    assert pair.main == "blip+slow"
    assert np.array_equal(pair.x("slow"), inputs.data.x("slow"))
    assert pair.digest("blip+slow") == inputs.data.digest("blip+slow")


def test_imported_features_have_no_numbers_of_the_paper(folder: Path) -> None:
    source = FeatureSource(store=folder / "slow.sqlite")  # vlm_width 0, as imported features have
    data = open_features(source)
    assert data.main == "store"
    inputs = ExperimentInputs(data, Settings("ucf101", OTHER, 2, 1, QUICK, SplitRule()))
    assert all(row.paper is None for row in paper_tables.table5(inputs).rows)
    assert {row.status for row in paper_tables.table9(inputs).rows} == {"needs two modalities", ""}


def test_missing_extractors_are_not_extracted_or_untrained(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "features"
    copied.mkdir()
    (copied / "blip.sqlite").write_bytes((folder / "blip.sqlite").read_bytes())
    untrained_marker(copied, "i3d").write_text("not trained")
    data = open_features(FeatureSource(folder=copied))
    assert (data.state("blip"), data.state("blip+i3d"), data.state("slow")) == ("ready", "untrained", "not extracted")
    with pytest.raises(DataError, match="untrained"):
        data.x("blip+i3d")
    with pytest.raises(UsageError, match="no extractor 'vgg'"):
        data.state("vgg")


def test_an_empty_folder_is_refused_with_the_command_that_extracts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no feature stores") as caught:
        open_features(FeatureSource(folder=tmp_path))
    assert "flamest-experiment extract" in caught.value.fix
