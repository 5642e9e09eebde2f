"""A clip read: its frames in the form that each graph takes, and the time that it took."""

import msgspec
import numpy as np
import pytest
from flamest.base.files import sha256_file
from flamest.runtime.bundle.graph_records import Tensor
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.clip_records import Clip
from flamest.runtime.video.clip_reader import ClipReader, open_decoder
from flamest.runtime.video.decoder import PreparedFrames
from flamest.runtime.video.preprocessing import FrameInput, frames_for, prepare_frames


class FirstRows:
    """Features that differ from frame to frame."""

    def of(self, candidates):
        return candidates.pixels.reshape(len(candidates.pixels), -1)[:, :5].astype(np.float32)


@pytest.fixture(scope="module")
def clip(clips, tmp_path_factory):
    path = clips.write_clip(tmp_path_factory.mktemp("clip") / "a.avi", frames=50, noise=20)
    return Clip(path, sha256_file(path))


@pytest.fixture(scope="module")
def manifest(toy_bundle):
    return read_manifest(toy_bundle)


def of_bytes(manifest):
    """The manifest with graphs ``vision`` and ``cnn`` that take uint8."""

    def taking(graph, *inputs):
        return msgspec.structs.replace(manifest.graphs[graph], inputs=inputs)

    vision = taking("vision", Tensor("pixels", "uint8", ("batch", 8, 8, 3)))
    cnn = taking("cnn", Tensor("frames", "uint8", ("batch", 8, 16, 16, 3)))
    rounded = msgspec.structs.replace(manifest.cnn.preprocessing, filter="bilinear-bytes")
    return msgspec.structs.replace(
        manifest,
        graphs=manifest.graphs | {"vision": vision, "cnn": cnn},
        cnn=msgspec.structs.replace(manifest.cnn, preprocessing=rounded),
    )


def read(manifest, clip):
    reader = ClipReader(manifest, open_decoder(manifest), FirstRows())
    try:
        prepared = reader.read(clip)
        candidates = reader.video.candidates(clip.path)
        rows = np.searchsorted(candidates.t_s, prepared.times_s)
        return prepared, reader.video.keyframes(candidates, rows).rgb
    finally:
        reader.close()


def test_graphs_that_take_bytes_get_bytes(manifest, clip):
    manifest = of_bytes(manifest)
    prepared, rgb = read(manifest, clip)
    drawn = rgb[prepared.keyframe][None]
    image, motion = (FrameInput(part.preprocessing, whole_bytes=True) for part in (manifest.vlm, manifest.cnn))
    for got, expected in (
        (prepared.captioned, frames_for(drawn, image)),
        (prepared.cnn_frames, frames_for(rgb, motion)),
    ):
        assert got.dtype == np.uint8
        assert got.shape == expected.shape
        assert got.tobytes() == expected.tobytes()


def test_graphs_of_bundles_of_0_2_0_get_the_same_floats(manifest, clip):
    prepared, rgb = read(manifest, clip)
    image = prepare_frames(rgb[prepared.keyframe][None], manifest.vlm.preprocessing)
    motion = prepare_frames(rgb, manifest.cnn.preprocessing).swapaxes(0, 1)
    for got, expected in ((prepared.captioned, image), (prepared.cnn_frames, motion)):
        assert got.dtype == np.float32
        assert got.shape == expected.shape
        assert got.flags.c_contiguous
        assert got.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_candidates_are_floats_unless_graph_keyframes_takes_bytes(manifest):
    def dtype_of(manifest):
        with open_decoder(manifest) as decoder:
            return decoder._form.dtype

    frames = Tensor("frames", "uint8", ("frames", 24, 24, 3))
    taking = msgspec.structs.replace(manifest.graphs["keyframes"], inputs=(frames,))
    rounded = msgspec.structs.replace(manifest.keyframes.preprocessing, filter="bilinear-bytes")
    of_bytes = msgspec.structs.replace(
        manifest,
        graphs=manifest.graphs | {"keyframes": taking},
        keyframes=msgspec.structs.replace(manifest.keyframes, preprocessing=rounded),
    )
    assert dtype_of(manifest) == np.float32
    assert dtype_of(of_bytes) == np.uint8


@pytest.mark.parametrize("reported", [-5.0, 1e300])
def test_a_hostile_time_of_preparing_stays_within_the_measured_one(manifest, clip, monkeypatch, reported):
    reader = ClipReader(manifest, open_decoder(manifest), FirstRows())
    prepared = reader.video.prepared

    def lying(*given):
        return PreparedFrames(prepared(*given).parts, reported)

    monkeypatch.setattr(reader.video, "prepared", lying)
    try:
        stages = reader.read(clip).stages_ms
    finally:
        reader.close()
    assert stages["decode"] > 0
    assert 0 <= stages["prepare"] < 1e6
