"""Many clips at once give, clip by clip and in their order, what each gives alone."""

from pathlib import Path

import numpy as np
import pytest
from flamest.base.errors import InvariantError, UsageError
from flamest.base.files import sha256_file
from flamest.base.progress import NoProgress
from flamest.export.bench.comparison import BenchRequest, run_bench
from flamest.runtime.backends.onnxruntime_cpu import OrtSession, open_session
from flamest.runtime.bundle.packaged import resolve_bundle
from flamest.runtime.caption_batch import CaptionBatch
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import PipelineOptions, open_extractor
from flamest.runtime.vision_language import VisionLanguageModel


@pytest.fixture(scope="module")
def many(clips, tmp_path_factory):
    """Eight clips, the fourth of them broken."""
    folder = tmp_path_factory.mktemp("many")
    paths = [clips.write_clip(folder / f"{seed}.avi", frames=12 + 5 * seed, seed=seed, noise=20) for seed in range(8)]
    paths[3].write_text("no video")
    return [Clip(path, sha256_file(path)) for path in paths]


def extracted(bundle, clips, pipeline):
    with open_extractor(bundle, threads=1, pipeline=pipeline) as extractor:
        return list(extractor.extract_all(clips))


def bytes_of(done):
    features = done.features
    return features and (features.vlm.tobytes(), features.cnn.tobytes(), features.caption, features.keyframe_times_s)


@pytest.fixture(scope="module")
def one_by_one(toy_bundle, many):
    return extracted(toy_bundle, many, PipelineOptions(readers=1, batch=1, captions=1))


def test_a_batch_above_the_bundles_largest_is_refused():
    bundle = resolve_bundle(Path("miniworld"))
    with pytest.raises(UsageError, match=r"a batch of 500 clips is more than .* at once, 128") as caught:
        open_extractor(bundle, pipeline=PipelineOptions(batch=500))
    assert "--batch 128" in caught.value.fix
    with pytest.raises(UsageError, match="a batch of 500"):
        run_bench(BenchRequest(bundle, batches=(1, 500)), NoProgress())


@pytest.mark.parametrize(("readers", "captions"), [(1, 8), (3, 1), (2, 3), (4, 16)])
def test_bytes_and_order_do_not_depend_on_readers_or_captions(toy_bundle, many, one_by_one, readers, captions):
    found = extracted(toy_bundle, many, PipelineOptions(readers=readers, captions=captions))
    assert [done.clip for done in found] == many
    assert list(map(bytes_of, found)) == list(map(bytes_of, one_by_one))


def test_a_batch_of_clips_gives_the_same_to_a_hundred_thousandth(toy_bundle, many, one_by_one):
    found = extracted(toy_bundle, many, PipelineOptions(readers=4, batch=4, captions=4))
    for done, alone in zip(found, one_by_one, strict=True):
        assert (done.features is None) == (alone.features is None)
        if done.features is not None:
            assert done.features.caption == alone.features.caption
            np.testing.assert_allclose(done.features.vlm, alone.features.vlm, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(done.features.cnn, alone.features.cnn, rtol=1e-5, atol=1e-5)


def test_a_broken_clip_keeps_its_position_with_its_reason(one_by_one):
    assert [done.error and done.error.code for done in one_by_one] == [None] * 3 + ["video_not_video"] + [None] * 4


def test_a_caption_does_not_depend_on_other_rows(tiny_bundle, many):
    alone = extracted(tiny_bundle, many[:3], PipelineOptions(readers=1, captions=1))
    fallback_folder = extracted(tiny_bundle, many[:3], PipelineOptions(readers=2, captions=3))
    assert list(map(bytes_of, fallback_folder)) == list(map(bytes_of, alone))


@pytest.mark.parametrize("extractor", ["clip+slow", "blip-text+resnet3d", "slow-uniform"])
def test_every_kind_of_extractor_goes_through_the_same_pipeline(toys, many, tmp_path, extractor):
    bundle = toys.write_bundle(tmp_path / "bundle", extractor=extractor)
    alone = extracted(bundle, many, PipelineOptions(readers=1, captions=1))
    assert list(map(bytes_of, extracted(bundle, many, PipelineOptions(readers=3, captions=4)))) == list(
        map(bytes_of, alone)
    )


def test_only_a_few_clips_are_read_ahead(toy_bundle, many):
    asked, pipeline = [], PipelineOptions(readers=2, captions=2)

    def coming():
        for number in range(40):
            asked.append(number)
            yield many[number % 3]

    with open_extractor(toy_bundle, threads=1, pipeline=pipeline) as extractor:
        most = pipeline.readers + 1 + pipeline.captions + 1
        for number, _ in enumerate(extractor.extract_all(coming())):
            # A clip may end while an older one's caption is still being written: it waits for its turn.
            assert len(asked) - number <= most + toy_longest(toy_bundle) * pipeline.captions
    assert len(asked) == 40


def toy_longest(bundle):
    from flamest.runtime.bundle.manifest_reading import read_manifest

    return read_manifest(bundle).vlm.caption.max_new_tokens


def test_an_extraction_that_is_left_early_leaves_nothing_behind(toy_bundle, many, one_by_one):
    with open_extractor(toy_bundle, threads=1, pipeline=PipelineOptions(readers=2, captions=3)) as extractor:
        extracting = extractor.extract_all(many)
        next(extracting)
        extracting.close()
        assert bytes_of(next(extractor.extract_all(many[1:2]))) == bytes_of(one_by_one[1])


def test_on_a_gpu_a_run_takes_a_batch_of_clips(toy_bundle, many, one_by_one, monkeypatch):
    """The CPU's session pretends to compute elsewhere."""
    monkeypatch.setattr(OrtSession, "computes_on_host", False)
    with open_extractor(toy_bundle, threads=1) as extractor:
        assert extractor.sizes.batch == 16
        found = list(extractor.extract_all(many))
    for one, alone in zip(found, one_by_one, strict=True):
        assert (one.features is None) == (alone.features is None)
        if one.features is not None:
            np.testing.assert_allclose(one.features.vlm, alone.features.vlm, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(one.features.cnn, alone.features.cnn, rtol=1e-4, atol=1e-5)


# --- captions row by row ---


@pytest.fixture(scope="module")
def model(toy_bundle):
    from flamest.runtime.bundle.manifest_reading import read_manifest

    sessions = (open_session(toy_bundle / f"{name}.onnx") for name in ("vision", "text"))
    return VisionLanguageModel(*sessions, read_manifest(toy_bundle).vlm)


@pytest.fixture(scope="module")
def pixels(toys):
    return np.random.default_rng(5).normal(size=(12, 3, toys.IMAGE, toys.IMAGE)).astype(np.float32)


def write_all(model, pixels, rows):
    """The captions and embeddings of all frames with ``rows`` rows, and how many steps it took."""
    batch, found, waiting, steps = CaptionBatch(model, rows), {}, list(range(len(pixels))), 0
    while waiting or batch.unfinished:
        while waiting and batch.free:
            number = waiting.pop(0)
            batch.add([number], model.encode_image(pixels[number : number + 1]))
        steps += 1
        for number, ids, place in batch.step():
            found[number] = (ids, model.embed(batch.frame(place), [ids])[0].tobytes())
    return [found[number] for number in range(len(pixels))], steps


def test_captions_row_by_row_are_those_of_a_whole_batch(model, pixels):
    memory = model.encode_image(pixels)
    captions = model.caption_ids(memory)
    assert len({len(ids) for ids in captions}) > 2  # some end early, or this shows nothing
    assert [ids for ids, _ in write_all(model, pixels, rows=5)[0]] == captions


def test_the_row_of_a_finished_caption_goes_to_the_next_frame(model, pixels):
    one, alone = write_all(model, pixels, rows=1)
    five, together = write_all(model, pixels, rows=5)
    assert five == one
    lengths = [min(len(ids) + 1, model.spec.caption.max_new_tokens) for ids, _ in one]
    assert alone == sum(lengths)
    in_batches = sum(max(lengths[start : start + 5]) for start in range(0, len(lengths), 5))
    assert together < in_batches


def test_a_nan_of_one_frame_does_not_reach_the_next(model, pixels):
    batch = CaptionBatch(model, 1)
    for rows in batch.past.values():
        rows.array[...] = np.nan  # what a deep text network leaves there; the toy's one layer does not
    batch.add([0], model.encode_image(pixels[:1]))
    ended = []
    while not ended:
        ended = batch.step()
    assert ended[0][1] == write_all(model, pixels[:1], rows=1)[0][0][0]


def test_more_frames_than_rows_are_refused(model, pixels):
    batch = CaptionBatch(model, 2)
    batch.add([0, 1], model.encode_image(pixels[:2]))
    with pytest.raises(InvariantError, match="1 frames for 0 free places"):
        batch.add([2], model.encode_image(pixels[2:3]))


@pytest.mark.parametrize(("threads", "readers"), [(1, 1), (2, 2), (8, 3)])
def test_on_a_cpu_at_most_three_readers_work(toy_bundle, threads, readers):
    """Each may hold 256 MB of frames, and two or three feed the networks."""
    with open_extractor(toy_bundle, threads=threads) as extractor:
        assert extractor.sizes.readers == readers
