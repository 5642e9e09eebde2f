"""Cost of each precision: cosines to fp32 on real frames, captions, milliseconds.

Needs bundles of the same weights in fp32, fp16, bf16 and int8, and clips:

    python -m bench.precision --clips DIR --fp32 DIR [--fp16 DIR] [--bf16 DIR] [--int8 DIR] [--name full]

The keyframes are the same for all (graph ``keyframes`` is fp32 everywhere). Each bundle's embedding uses the fp32
bundle's caption, because near-ties between captions depend little on precision. A bf16 graph is computed by OpenVINO,
or without it by ONNX Runtime with rounding after every operator. Milliseconds are the least of interleaved runs:
compare ratios only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flamest.base.errors import FlamestError
from flamest.export.parity.comparison import COSINES
from flamest.export.parity.written_graphs import WrittenGraphs
from flamest.runtime.backends.openvino_cpu import OpenVinoSession
from flamest.runtime.backends.session import Session
from flamest.runtime.bundle.manifest import VisionLanguage
from flamest.runtime.bundle.opening import Bundle, open_bundle
from flamest.runtime.clip_records import Clip
from flamest.runtime.keyframe_features import KeyframeFeatures
from flamest.runtime.similarity import row_cosines
from flamest.runtime.video import find_video_files
from flamest.runtime.video.clip_reader import ClipReader, open_decoder
from flamest.runtime.vision_language import VisionLanguageModel

from .record import interleaved_ms, store_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--most", type=int, default=20, help="number of clips, spread evenly over their names")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="bundles", help="name of the result, bench/results/precision_NAME.json")
    for precision in COSINES:
        parser.add_argument(f"--{precision}", type=Path, required=precision == "fp32")
    arguments = parser.parse_args()
    bundles = {word: open_bundle(path) for word in COSINES if (path := getattr(arguments, word)) is not None}
    found = find_video_files(arguments.clips)
    chosen = found[:: max(1, len(found) // arguments.most)][: arguments.most]
    figures = measure(bundles, chosen, arguments.repeats)
    print(json.dumps(figures, indent=2))
    print(f"stored in {store_result(f'precision_{arguments.name}', figures)}")


def measure(bundles: dict[str, Bundle], clips: list[Path], repeats: int) -> dict[str, Any]:
    fp32 = bundles["fp32"].manifest
    for bundle in bundles.values():
        if bundle.manifest.fingerprint != fp32.fingerprint:
            raise SystemExit(f"{bundle.path} has another fingerprint than the fp32 bundle")
    seen = list(network_inputs(bundles["fp32"], clips))
    runs = {word: Deployed(bundle) for word, bundle in bundles.items()}
    reference = [runs["fp32"].embed(*one, None) for one in seen]
    rows: dict[str, Any] = {}
    for word, deployed in runs.items():
        cosines: dict[str, list[float]] = {"vlm": [], "cnn": []}
        equal = 0
        for one, (expected, reference_caption) in zip(seen, reference, strict=True):
            got, caption = deployed.embed(*one, reference_caption)
            equal += caption == reference_caption
            for part, vector in got.items():
                cosines[part].append(float(row_cosines(vector, expected[part])[0]))
        rows[word] = {
            "precision": bundles[word].manifest.precision,
            "megabytes": {name: round(_bytes(bundles[word], name) / 1e6, 1) for name in deployed.graphs},
            "computed_by": deployed.where,
            "smallest_cosine": {part: min(each) for part, each in cosines.items() if each},
            "mean_cosine": {part: float(np.mean(each)) for part, each in cosines.items() if each},
            "limit": COSINES[word],  # type: ignore[index]
            "captions_equal": equal,
            "captions": len(seen),
        }
    one = seen[0]
    for name in runs["fp32"].graphs:
        feeds = runs["fp32"].feeds(name, *one)
        times = interleaved_ms(
            {
                f"{word} {where}": (lambda session=session, feeds=feeds: session.run(feeds))  # type: ignore[misc]
                for word, deployed in runs.items()
                for where, session in deployed.sessions(name)
            },
            repeats=repeats,
        )
        for session, figures in times.items():
            word, _, where = session.partition(" ")
            rows[word].setdefault("least_ms", {}).setdefault(name, {})[where] = round(figures["least_ms"], 2)
    return {"clips": len(seen), "sources": {k: v.name for k, v in fp32.sources.items()}, "rows": rows}


def network_inputs(bundle: Bundle, clips: list[Path]) -> Iterator[tuple[Any, Any]]:
    """Inputs of the vision and the cnn graph per clip: keyframes, picked and prepared as by the runtime."""
    manifest = bundle.manifest
    keyframes = KeyframeFeatures(WrittenGraphs(bundle.path, manifest.graphs).open("keyframes"))
    reader = ClipReader(manifest, open_decoder(manifest), keyframes)
    try:
        for index, clip in enumerate(clips):
            read = reader.read(Clip(clip, f"{index:064x}"))
            yield (
                read.captioned[:1] if manifest.vlm is not None else None,
                read.cnn_frames[None] if manifest.cnn is not None else None,
            )
    finally:
        reader.close()


class Deployed:
    """The graphs of one bundle, opened."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self._written = WrittenGraphs(bundle.path, bundle.manifest.graphs)
        self.graphs = tuple(name for name in bundle.manifest.needed_graphs if name != "keyframes")
        self._sessions = {name: self._open(name) for name in self.graphs}
        self._openvino: dict[str, Session] = {}
        spec = self.manifest.vlm
        self._captioner = None
        if isinstance(spec, VisionLanguage):
            words = self._sessions.get("words")
            self._captioner = VisionLanguageModel(self._sessions["vision"], self._sessions["text"], spec, words=words)
        self.where = sorted({session.where for session in self._sessions.values()})

    def _open(self, name: str) -> Session:
        """Open bf16 graphs by OpenVINO where it is installed, all others by ONNX Runtime."""
        if self.manifest.graphs[name].precision == "bf16":
            opened = _openvino(self._written.folder / self.manifest.graphs[name].file, "bf16")
            if opened is not None:
                return opened
        return self._written.open(name)

    def sessions(self, name: str) -> Iterator[tuple[str, Session]]:
        yield self._sessions[name].where, self._sessions[name]
        precision = self.manifest.graphs[name].precision
        path = self._written.folder / self.manifest.graphs[name].file
        for computed in {"fp32": ("f32", "bf16"), "int8": ("f32",)}.get(precision, ()):
            opened = _openvino(path, computed)
            if opened is not None:
                yield opened.where, opened

    def embed(self, pixels: Any, motion: Any, caption_in: Any) -> tuple[dict[str, Any], Any]:
        """Embeddings by part, read with the caption ``caption_in``, and the bundle's own caption."""
        found, caption = {}, None
        if self._captioner is not None:
            cache = self._captioner.encode_image(pixels)
            caption = self._captioner.caption_ids(cache)
            found["vlm"] = self._captioner.embed(cache, caption_in or caption)
        if motion is not None:
            found["cnn"] = self._sessions["cnn"].run({"frames": motion})["embedding"]
        return found, caption

    def feeds(self, name: str, pixels: Any, motion: Any) -> dict[str, Any]:
        """Inputs of one run: a clip, or one caption step after ten tokens."""
        if name == "vision":
            return {"pixels": pixels}
        if name == "cnn":
            return {"frames": motion}
        from flamest.export.bench.inputs import usual_feeds

        graph = self.manifest.graphs[name]
        return dict(usual_feeds(graph, {word: axis.usual for word, axis in graph.axes.items()}))


def _openvino(path: Path, computed: Literal["f32", "bf16"]) -> Session | None:
    """A session of OpenVINO; None where it is not installed or does not open the graph."""
    try:
        return OpenVinoSession.open(path, computed=computed)
    except FlamestError as error:
        print(f"{path.name}: {error.message}")
        return None


def _bytes(bundle: Bundle, name: str) -> int:
    return bundle.manifest.files[bundle.manifest.graphs[name].file].bytes


if __name__ == "__main__":
    main()
