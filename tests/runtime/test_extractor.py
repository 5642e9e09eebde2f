"""A clip becomes the same numbers every time, each from the frames that it should be from."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from flamest.base.errors import DataError, MissingExtra
from flamest.base.files import sha256_file
from flamest.runtime.extractor import STAGES, open_extractor
from flamest.runtime.frames import prepare_frames
from flamest.runtime.keyframes import clip_seeds, draw_keyframe, pick_keyframes, uniform_indices
from flamest.runtime.records import Clip


@pytest.fixture(scope="module")
def clip(clips, tmp_path_factory):
    path = clips.write_clip(tmp_path_factory.mktemp("clip") / "a.avi", frames=50, noise=20)
    return Clip(path, sha256_file(path), "wave")


@pytest.fixture(scope="module")
def extractor(toy_bundle):
    with open_extractor(toy_bundle, threads=1) as opened:
        yield opened


def test_the_numbers_are_those_of_the_pipeline_by_hand(extractor, clip, toys):
    import av

    features = extractor.extract(clip)
    manifest, weights = extractor.manifest, toys.weights(1)
    with av.open(str(clip.path)) as file:
        rgb = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    rgb = rgb[uniform_indices(len(rgb), toys.CANDIDATES)]
    small = prepare_frames(rgb, manifest.keyframes.preprocessing).reshape(toys.CANDIDATES, -1)
    seeds = clip_seeds(manifest.extraction_seed, clip.sha256)
    chosen = pick_keyframes((small @ weights["frame"]).astype(np.float32), toys.KEYFRAMES, seeds.clusters)
    slow = prepare_frames(rgb[chosen], manifest.cnn.preprocessing).mean(axis=(2, 3))  # [K, 3]
    np.testing.assert_allclose(features.cnn, slow.T.reshape(-1) @ weights["slow"], atol=1e-4)
    assert features.keyframe == draw_keyframe(toys.KEYFRAMES, seeds.draw)
    assert len(features.keyframe_times_s) == toys.KEYFRAMES
    assert features.caption.text.split() == [toys.WORDS[number] for number in features.caption.token_ids]
    assert set(features.stages_ms) == set(STAGES)
    assert all(milliseconds > 0 for milliseconds in features.stages_ms.values())


def test_the_drawn_keyframe_is_the_one_that_is_described(extractor, clip, toys):
    frames = extractor._video.candidates(clip.path)
    features = extractor.extract(clip)
    frames = extractor._video.candidates(clip.path)
    rows = np.searchsorted(frames.t_s, features.keyframe_times_s)
    keyframes = extractor._video.keyframes(frames, rows)
    one = prepare_frames(keyframes.rgb[features.keyframe][None], extractor.manifest.vlm.preprocessing)
    memory = extractor._vlm.look(one)
    assert extractor._vlm.caption_ids(memory) == [features.caption.token_ids]
    assert extractor._vlm.embed(memory, [features.caption.token_ids])[0].tobytes() == features.vlm.tobytes()


def digest(features):
    return hashlib.sha256(features.vlm.tobytes() + features.cnn.tobytes() + features.caption.text.encode()).hexdigest()


AGAIN = """
import sys
from pathlib import Path
from flamest.base.files import sha256_file
from flamest.runtime.extractor import open_extractor
from flamest.runtime.records import Clip
import hashlib
bundle, clip = map(Path, sys.argv[1:3])
with open_extractor(bundle, threads=int(sys.argv[3])) as extractor:
    f = extractor.extract(Clip(clip, sha256_file(clip)))
print(hashlib.sha256(f.vlm.tobytes() + f.cnn.tobytes() + f.caption.text.encode()).hexdigest())
"""


def in_a_fresh_process(bundle, clip, threads):
    command = [sys.executable, "-c", AGAIN, str(bundle), str(clip.path), str(threads)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_same_clip_gives_the_same_bytes_again_and_in_a_fresh_process(extractor, toy_bundle, clip):
    first = digest(extractor.extract(clip))
    assert digest(extractor.extract(clip)) == first
    assert in_a_fresh_process(toy_bundle, clip, 1) == first


def test_a_real_bundle_gives_2816_numbers_and_the_same_bytes_in_a_fresh_process(tiny_bundle, clip):
    with open_extractor(tiny_bundle, threads=2) as extractor:
        features = extractor.extract(clip)
        assert features.vlm.shape == (768,)
        assert features.cnn.shape == (2048,)
        assert features.caption.text
        assert features.fingerprint == extractor.manifest.fingerprint
        first = digest(features)
        assert digest(extractor.extract(clip)) == first
    assert in_a_fresh_process(tiny_bundle, clip, 2) == first


def test_another_extraction_seed_draws_other_keyframes(toys, clips, tmp_path):
    bundles = [toys.write_bundle(tmp_path / str(seed), extraction_seed=seed) for seed in (0, 1)]
    paths = [clips.write_clip(tmp_path / f"{number}.avi", seed=number, noise=20) for number in range(4)]
    drawn, fingerprints = [], set()
    for bundle in bundles:
        with open_extractor(bundle, threads=1) as extractor:
            found = [extractor.extract(Clip(path, sha256_file(path))) for path in paths]
        drawn.append([(features.keyframe, features.keyframe_times_s) for features in found])
        fingerprints.update(features.fingerprint for features in found)
    assert drawn[0] != drawn[1]
    assert len(fingerprints) == 2


def test_the_draw_depends_on_content_and_not_on_the_name(extractor, clip, tmp_path):
    other = tmp_path / "another-name.mp4"
    other.write_bytes(clip.path.read_bytes())
    assert digest(extractor.extract(Clip(other, sha256_file(other)))) == digest(extractor.extract(clip))


def test_a_still_clip_is_extracted(extractor, clips, tmp_path):
    path = clips.write_clip(tmp_path / "still.avi", np.full((20, 64, 96, 3), 90, np.uint8))
    features = extractor.extract(Clip(path, sha256_file(path)))
    assert len(features.keyframe_times_s) == 8
    assert np.isfinite(features.cnn).all()


def test_a_broken_clip_is_a_named_reason_and_the_next_one_works(extractor, clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    with pytest.raises(DataError) as caught:
        extractor.extract(Clip(broken, sha256_file(broken)))
    assert caught.value.code == "video_not_video"
    assert extractor.extract(clip).cnn.shape == (5,)


def test_numbers_that_are_not_finite_are_refused(toys, clip, tmp_path):
    folder = toys.write_bundle(tmp_path / "bundle")
    weights = toys.weights(1)
    weights["slow"][0, 0] = np.inf
    (folder / "slow.onnx").write_bytes(toys.slow_graph(weights).SerializeToString())
    toys.write_manifest(folder, ["vision", "text", "slow", "keyframes"])
    with open_extractor(folder, threads=1) as extractor, pytest.raises(DataError) as caught:
        extractor.extract(clip)
    assert caught.value.code == "not_finite"
    assert str(clip.path) in caught.value.message


def test_a_manifest_that_contradicts_its_graphs_is_refused(toys, tmp_path):
    folder = toys.write_bundle(tmp_path / "bundle")
    manifest = toys.write_manifest(folder, ["vision", "text", "slow", "keyframes"])
    import msgspec

    cnn = msgspec.structs.replace(manifest.cnn, frames=4)
    toys.write_manifest(folder, ["vision", "text", "slow", "keyframes"], cnn=cnn)
    with pytest.raises(DataError, match="picks 8 keyframes, its graph 'slow' reads 4"):
        open_extractor(folder)


@pytest.mark.parametrize("package", ["av", "tokenizers", "onnxruntime", "sklearn"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(toy_bundle, package):
    program = (
        "import sys, importlib.util; from pathlib import Path\n"
        f"sys.modules[{package!r}] = None\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == {package!r} else find(name, *a)\n"
        "from flamest.runtime.extractor import open_extractor\n"
        "from flamest.base.errors import MissingExtra\n"
        "try: open_extractor(Path(sys.argv[1]))\n"
        "except MissingExtra as error: print(error.message, error.fix)\n"
    )
    told = subprocess.run([sys.executable, "-c", program, str(toy_bundle)], capture_output=True, text=True, check=True)
    name = "scikit-learn" if package == "sklearn" else package
    assert f"'{name}'" in told.stdout
    assert MissingExtra(name, extra="agent").fix in told.stdout
