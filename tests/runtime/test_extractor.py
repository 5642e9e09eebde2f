"""A clip gives the same embedding every time, each part from its own frames."""

import functools
import hashlib
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from flamest.base.errors import DataError, MissingExtra
from flamest.base.files import sha256_file
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import STAGES, open_extractor
from flamest.runtime.keyframes import clip_seeds, draw_keyframe, pick_keyframes, uniform_indices
from flamest.runtime.video.decoder import VideoDecoder
from flamest.runtime.video.preprocessing import prepare_frames
from flamest.runtime.vision_language import VisionLanguageModel


@pytest.fixture(scope="module")
def clip(clips, tmp_path_factory):
    path = clips.write_clip(tmp_path_factory.mktemp("clip") / "a.avi", frames=50, noise=20)
    return Clip(path, sha256_file(path), "wave")


@pytest.fixture(scope="module")
def extractor(toy_bundle):
    with open_extractor(toy_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def video(extractor):
    """A decoder of the toy bundle's candidates."""
    with VideoDecoder(extractor.manifest.keyframes) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def model(toy_bundle, extractor):
    sessions = (open_session(toy_bundle / f"{name}.onnx") for name in ("vision", "text"))
    return VisionLanguageModel(*sessions, extractor.manifest.vlm)


def test_the_embedding_equals_the_pipeline_by_hand(extractor, clip, toys):
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


def test_the_drawn_keyframe_is_the_captioned_one(extractor, video, model, clip):
    features = extractor.extract(clip)
    frames = video.candidates(clip.path)
    rows = np.searchsorted(frames.t_s, features.keyframe_times_s)
    keyframes = video.keyframes(frames, rows)
    one = prepare_frames(keyframes.rgb[features.keyframe][None], extractor.manifest.vlm.preprocessing)
    memory = model.encode_image(one)
    assert model.caption_ids(memory) == [features.caption.token_ids]
    assert model.embed(memory, [features.caption.token_ids])[0].tobytes() == features.vlm.tobytes()


def digest(features):
    return hashlib.sha256(features.vlm.tobytes() + features.cnn.tobytes() + features.caption.text.encode()).hexdigest()


AGAIN = """
import sys
from pathlib import Path
from flamest.base.files import sha256_file
from flamest.runtime.extractor import open_extractor
from flamest.runtime.clip_records import Clip
import hashlib
bundle, clip = map(Path, sys.argv[1:3])
with open_extractor(bundle, threads=int(sys.argv[3])) as extractor:
    f = extractor.extract(Clip(clip, sha256_file(clip)))
print(hashlib.sha256(f.vlm.tobytes() + f.cnn.tobytes() + f.caption.text.encode()).hexdigest())
"""


def in_a_fresh_process(bundle, clip, threads):
    command = [sys.executable, "-c", AGAIN, str(bundle), str(clip.path), str(threads)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_same_clip_gives_the_same_bytes_in_any_process(extractor, toy_bundle, clip):
    first = digest(extractor.extract(clip))
    assert digest(extractor.extract(clip)) == first
    assert in_a_fresh_process(toy_bundle, clip, 1) == first


def test_a_real_bundle_gives_the_same_2816_values_in_any_process(tiny_bundle, clip):
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


def test_a_broken_clip_has_a_named_reason_and_the_next_works(extractor, clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    with pytest.raises(DataError) as caught:
        extractor.extract(Clip(broken, sha256_file(broken)))
    assert caught.value.code == "video_not_video"
    assert extractor.extract(clip).cnn.shape == (5,)


def test_an_embedding_that_is_not_finite_is_refused(toys, clip, tmp_path):
    folder = toys.write_bundle(tmp_path / "bundle")
    weights = toys.weights(1)
    weights["slow"][0, 0] = np.inf
    (folder / "cnn.onnx").write_bytes(toys.cnn_graph(weights).SerializeToString())
    toys.write_manifest(folder)
    with open_extractor(folder, threads=1) as extractor, pytest.raises(DataError) as caught:
        extractor.extract(clip)
    assert caught.value.code == "not_finite"
    assert str(clip.path) in caught.value.message


def test_a_manifest_that_contradicts_its_graphs_is_refused(toys, tmp_path):
    folder = toys.write_bundle(tmp_path / "bundle")
    toys.write_manifest(folder, cnn=msgspec.structs.replace(toys.spatio_temporal(), frames=4))
    with pytest.raises(DataError, match="chooses 4 frames, its graph 'cnn' takes 8"):
        open_extractor(folder)


@pytest.fixture(scope="module")
def extract(toys, clip, tmp_path_factory):
    """``extract("blip+slow")``: the module's clip through the toy bundle of that extractor, once."""

    @functools.cache
    def extracted(extractor, **options):
        folder = tmp_path_factory.mktemp("toy") / "bundle"
        with open_extractor(toys.write_bundle(folder, extractor=extractor, **options), threads=1) as opened:
            return opened.extract(clip)

    return extracted


@pytest.mark.parametrize(
    "pair", ["blip+slow", "blip+resnet3d", "blip-text+slow", "blip-text+resnet3d", "blip+slow-uniform", "clip+slow"]
)
def test_a_pair_gives_bit_for_bit_what_its_parts_give_alone(extract, pair):
    vlm, cnn = pair.split("+")
    both, left, right = extract(pair), extract(vlm), extract(cnn)
    assert both.vlm.tobytes() == left.vlm.tobytes()
    assert both.cnn.tobytes() == right.cnn.tobytes()
    assert (both.caption, both.keyframe, both.keyframe_times_s) == (left.caption, left.keyframe, left.keyframe_times_s)
    assert (left.cnn.size, right.vlm.size, right.keyframe, right.caption.text) == (0, 0, -1, "")


def test_a_network_of_three_frames_gets_three_clusters(extract, toy_bundle, video, clip, toys):
    candidates = video.candidates(clip.path)
    features = open_session(toy_bundle / "keyframes.onnx").run({"frames": candidates.pixels})["features"]
    rows = pick_keyframes(features, 3, clip_seeds(0, clip.sha256).clusters)
    assert extract("resnet3d").keyframe_times_s == tuple(candidates.t_s[rows].tolist())
    frames = prepare_frames(video.keyframes(candidates, rows).rgb, toys.spatio_temporal().preprocessing)
    by_hand = frames.mean(axis=(2, 3)).T.reshape(-1) @ toys.weights(1)["resnet3d"]
    np.testing.assert_allclose(extract("resnet3d").cnn, by_hand, atol=1e-4)


def test_uniform_frames_are_the_middles_of_equal_parts_of_the_clip(extract, video, clip):
    candidates = video.candidates(clip.path)
    times = extract("slow-uniform").keyframe_times_s
    assert times == tuple(candidates.t_s[[2, 6, 10, 14, 18, 22, 26, 30]].tolist())
    assert extract("slow-uniform").cnn.tobytes() != extract("slow").cnn.tobytes()


def test_a_stage_is_counted_where_there_is_one(extract):
    assert set(extract("blip+slow").stages_ms) == set(STAGES)
    assert set(extract("slow-uniform").stages_ms) == {"decode", "prepare", "cnn"}
    assert set(extract("clip").stages_ms) == {"decode", "keyframes", "prepare", "vision"}
    assert all(spent > 0 for name in ("slow", "clip", "blip") for spent in extract(name).stages_ms.values())


def test_a_retrieved_caption_is_the_nearest_to_the_frame(extract, video, clip, toys):
    features, weights = extract("clip"), toys.weights(1)
    candidates = video.candidates(clip.path)
    row = np.searchsorted(candidates.t_s, features.keyframe_times_s[features.keyframe])
    frame = video.keyframes(candidates, np.array([row])).rgb
    image = prepare_frames(frame, toys.retrieved_caption().preprocessing).reshape(-1) @ weights["image_matrix"]
    best = int((weights["captions"] @ image).argmax())
    assert features.caption.text == toys.CAPTIONS[best]
    np.testing.assert_allclose(features.vlm, [*image, *weights["captions"][best]], rtol=1e-4)


def test_several_captioned_frames_give_the_mean_of_their_embeddings(extract, extractor, video, model, clip):
    one, four, all_eight = extract("blip"), extract("blip", captioned_frames=4), extract("blip", captioned_frames=8)
    assert (four.keyframe, four.caption) == (one.keyframe, one.caption)
    candidates = video.candidates(clip.path)
    rows = np.searchsorted(candidates.t_s, one.keyframe_times_s)
    vectors = []
    rgb = video.keyframes(candidates, rows).rgb
    for frame in rgb:
        pixels = prepare_frames(frame[None], extractor.manifest.vlm.preprocessing)
        memory = model.encode_image(pixels)
        vectors.append(model.embed(memory, model.caption_ids(memory))[0])
    np.testing.assert_allclose(all_eight.vlm, np.mean(vectors, axis=0), atol=1e-5)
    spread = [vectors[(one.keyframe + step) % 8] for step in (0, 2, 4, 6)]
    np.testing.assert_allclose(four.vlm, np.mean(spread, axis=0), atol=1e-5)


@pytest.mark.parametrize("package", ["av", "tokenizers", "onnxruntime", "sklearn"])
def test_a_missing_package_is_named_with_the_install_command(toy_bundle, package):
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
    done = subprocess.run([sys.executable, "-c", program, str(toy_bundle)], capture_output=True, text=True, check=True)
    name = "scikit-learn" if package == "sklearn" else package
    assert f"'{name}'" in done.stdout
    assert MissingExtra(name, extra="agent").fix in done.stdout
