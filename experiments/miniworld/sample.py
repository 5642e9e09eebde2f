"""Features that come with the package, for a first try without videos: ``fl.load("miniworld")``.

They are of 300 rendered clips, 25 classes in 12 scenes, extracted in fp32 with the bundle that comes along
(docs/explanation/miniworld.md). ``make features`` makes the file again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...agent.extraction.extract import clips_to_extract, extract_clips
from ...agent.extraction.npz import write_npz
from ...agent.extraction.report import ExtractRequest
from ...agent.extraction.store import FeatureStore, StoredFeatures
from ...runtime.bundle.packaged import miniworld_bundle
from .specs import MOTIONS, OBJECTS
from .videos import render_dataset

SAMPLE = Path(__file__).with_name("features.npz")
GROUPS, SEED = 12, 2  # the seed is that of no other clips


def extract_sample(
    *, groups: int = GROUPS, objects: Sequence[str] = OBJECTS, motions: Sequence[str] = MOTIONS
) -> StoredFeatures:
    """Render clips of the sample and extract their features. Raises as rendering and extraction do."""
    with tempfile.TemporaryDirectory(prefix="flamest-sample-") as folder:
        videos, store = Path(folder) / "videos", Path(folder) / "features.sqlite"
        render_dataset(videos, groups=groups, seed=SEED, objects=objects, motions=motions, processes=1)
        request = ExtractRequest(miniworld_bundle(), videos, store)
        extract_clips(request, clips_to_extract(videos), on_clip=lambda: None, stop=lambda: False)
        with FeatureStore.open(store, create=False, read_only=True) as opened:
            return opened.read()


def main() -> int:
    """Write the file that comes with the package."""
    write_npz(SAMPLE, extract_sample())
    SAMPLE.chmod(0o644)
    with np.load(SAMPLE) as arrays:
        np.savez_compressed(SAMPLE, **{name: arrays[name] for name in arrays.files})
    return 0


if __name__ == "__main__":
    sys.exit(main())
