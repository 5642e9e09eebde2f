"""The features that come with the package: those of the clips and the bundle that they are said to be of."""

from __future__ import annotations

import numpy as np
from flamest.experiments.miniworld.sample import GROUPS, SAMPLE, extract_sample
from flamest.experiments.miniworld.videos import CLASSES
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.packaged import miniworld_bundle
from flamest.runtime.similarity import row_cosines


def test_the_sample_has_every_class_in_every_scene():
    with np.load(SAMPLE) as arrays:
        pairs = set(zip(arrays["y"].tolist(), arrays["group"].tolist(), strict=True))
        assert arrays["x"].shape == (len(CLASSES) * GROUPS, 384)
        assert arrays["fingerprint"].item() == read_manifest(miniworld_bundle()).fingerprint
    assert len(pairs) == len(CLASSES) * GROUPS
    assert {label for label, _ in pairs} == set(CLASSES)


def test_clips_extracted_again_have_the_samples_features():
    made = extract_sample(groups=1, objects=("ball",), motions=("crossing", "lifting"))
    with np.load(SAMPLE) as arrays:
        row_of = {path: row for row, path in enumerate(arrays["path"].tolist())}
        packed = arrays["x"][[row_of[path] for path in made.paths]]
    assert len(made.paths) == 2
    assert row_cosines(made.x, packed).min() > 0.99  # other builds of the codecs decode other pixels
