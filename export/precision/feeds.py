"""Inputs of the graphs for calibration clips: frames, and for the text graphs the captions that fp32 gives them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.backends.session import Feed, on_host
from ...runtime.bundle.manifest import FramePreprocessing, VisionLanguage
from ...runtime.vision_language import VisionLanguageModel
from ..graphs.spec import GraphSpec
from ..parity.chain import ModuleSession
from .calibration import CalibrationClips
from .ranges import Feeds

FRAMES_OF_CLIP = 4  # frames of a clip that an image encoder is calibrated on
CAPTIONED_CLIPS = 8  # clips whose captions the text graphs are calibrated on: an image's keys and values take 42 MB


def frame_feeds(spec: GraphSpec, rule: FramePreprocessing, clips: CalibrationClips) -> dict[str, list[Feeds]]:
    """Feeds of an image encoder or of graph ``cnn``, one for each clip."""
    (tensor,) = spec.inputs
    if tensor.name == "pixels":
        return {spec.name: [{"pixels": rgb} for rgb in clips.read(rule, FRAMES_OF_CLIP)]}
    return {spec.name: [{"frames": rgb[None]} for rgb in clips.read(rule, int(tensor.shape[1]))]}


def captioner_feeds(
    specs: Sequence[GraphSpec], vlm: VisionLanguage, clips: CalibrationClips, graphs: Collection[str]
) -> dict[str, list[Feeds]]:
    """Feeds of those of ``specs`` that ``graphs`` names: frames of ``vision``, and what captioning a frame of each
    clip and encoding the caption feeds to the others."""
    by_name = {spec.name: spec for spec in specs}
    feeds = frame_feeds(by_name["vision"], vlm.preprocessing, clips) if "vision" in graphs else {}
    if not set(graphs) - {"vision"}:
        return feeds
    recorded = {name: _RecordedModule(by_name[name]) for name in by_name if name != "vision"}
    model = VisionLanguageModel(ModuleSession(by_name["vision"]), recorded["text"], vlm, words=recorded.get("words"))
    for number, rgb in enumerate(clips.read(vlm.preprocessing, 1)):
        if number == CAPTIONED_CLIPS:
            break
        image = model.encode_image(rgb)
        model.embed(image, model.caption_ids(image))
    return feeds | {name: session.seen for name, session in recorded.items() if name in graphs}


@dataclass(frozen=True, eq=False)
class _RecordedModule(ModuleSession):
    """A module that remembers its feeds."""

    seen: list[Feeds] = field(default_factory=list)

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        self.seen.append({name: _kept(name, on_host(feeds[name])) for name in self.inputs})
        return super().run(feeds, outputs)


def _kept(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An image's keys and values are shared by all feeds of its caption; other arrays may change after the run."""
    return array if name.startswith("cross_") else np.array(array)
