"""Frames are preprocessed exactly as by the models' own code."""

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.runtime.bundle.graph_records import Graph, Tensor
from flamest.runtime.bundle.manifest import FramePreprocessing
from flamest.runtime.video.preprocessing import (
    FrameInput,
    FramePreparer,
    frame_input,
    frames_for,
    normalise,
    prepare_frames,
    resized_size,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BLIP = FramePreprocessing(size=384, fit="stretch", filter="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
SLOW = FramePreprocessing(size=256, fit="crop", filter="bilinear", mean=(0.45,) * 3, std=(0.225,) * 3)
VIDEOMAE = FramePreprocessing(
    size=224, fit="crop", filter="bilinear-pillow", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
RESNET3D = FramePreprocessing(
    size=112,
    fit="crop",
    filter="bilinear-bytes",
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
    resized=(128, 171),
)
SLOW_BYTES = FramePreprocessing(size=256, fit="crop", filter="bilinear-bytes", mean=(0.45,) * 3, std=(0.225,) * 3)
SIZES = [(240, 320), (320, 240), (244, 348), (16, 16), (241, 427), (720, 1281), (256, 256), (300, 255)]


def frames(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blip_frames_equal_hugging_faces_processor_to_the_byte(height: int, width: int) -> None:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    rgb = frames(height, width)
    expected = BlipImageProcessorPil()(list(rgb), return_tensors="np")["pixel_values"]
    assert prepare_frames(rgb, BLIP).tobytes() == np.asarray(expected, dtype=np.float32).tobytes()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [256, 112])
def test_slow_frames_equal_torch_interpolate_and_centre_crop(height: int, width: int, size: int) -> None:
    import torch
    from torchvision.transforms import CenterCrop

    rule = FramePreprocessing(size=size, fit="crop", filter="bilinear", mean=SLOW.mean, std=SLOW.std)
    rgb = frames(height, width)
    video = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255.0 - 0.45) / 0.225
    scaled = torch.nn.functional.interpolate(
        video, size=resized_size(height, width, rule), mode="bilinear", align_corners=False, antialias=False
    )
    expected = CenterCrop(size)(scaled).numpy()
    got = prepare_frames(rgb, rule)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    # torch's own kernels differ by 1.5e-5 with its number of threads; 5e-5 is 0.003 of a grey level.
    np.testing.assert_allclose(got, expected, atol=5e-5)


def test_short_side_is_scaled_and_the_long_side_rounded_down() -> None:
    assert resized_size(240, 320, SLOW) == (256, 341)
    assert resized_size(427, 240, SLOW) == (455, 256)
    assert resized_size(427, 240, BLIP) == (384, 384)


def test_bicubic_crop_keeps_the_middle_of_pillows_resize() -> None:
    from PIL import Image

    rule = FramePreprocessing(size=32, fit="crop", filter="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)
    rgb = frames(50, 81, count=1)
    whole = np.asarray(Image.fromarray(rgb[0]).resize((51, 32), Image.Resampling.BICUBIC))
    start = round((51 - 32) / 2)
    expected = whole[:, start : start + 32].astype(np.float32) / 255
    np.testing.assert_allclose(prepare_frames(rgb, rule)[0].transpose(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bilinear_of_pillow_keeps_the_middle_of_pillows_resize(height: int, width: int) -> None:
    from PIL import Image

    rgb = frames(height, width, count=1)
    tall, wide = resized_size(height, width, VIDEOMAE)
    whole = Image.fromarray(rgb[0]).resize((wide, tall), Image.Resampling.BILINEAR)
    top, left = round((tall - 224) / 2), round((wide - 224) / 2)
    expected = np.asarray(whole, np.float32)[top : top + 224, left : left + 224] / 255
    expected = (expected - np.float32(VIDEOMAE.mean)) / np.float32(VIDEOMAE.std)
    np.testing.assert_allclose(prepare_frames(rgb, VIDEOMAE)[0].transpose(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resnet3d_frames_equal_torchvisions_own_preset(height: int, width: int) -> None:
    """But for a grey level where a value lies half-way: 128 x 171 pixels whatever the aspect, the middle 112."""
    import torch
    from torchvision.models.video import R3D_18_Weights

    rgb = frames(height, width)
    expected = R3D_18_Weights.KINETICS400_V1.transforms()(torch.from_numpy(rgb).permute(0, 3, 1, 2))
    got = prepare_frames(rgb, RESNET3D).swapaxes(0, 1)
    assert got.shape == tuple(expected.shape) == (3, 2, 112, 112)
    levels = np.abs(got - expected.numpy()) * np.float32(RESNET3D.std)[:, None, None, None] * 255
    assert levels.max() < 1.01
    assert (levels > 0.01).mean() < 1e-3


def test_a_frame_does_not_depend_on_its_neighbours() -> None:
    rgb = frames(120, 160, count=5)
    for rule in (BLIP, SLOW, SLOW_BYTES, VIDEOMAE, RESNET3D):
        assert prepare_frames(rgb, rule)[3].tobytes() == prepare_frames(rgb[3:4], rule)[0].tobytes()


ODD_SIZES = [*SIZES, (1, 1), (1, 40), (40, 1), (2, 3), (257, 113), (1080, 1920), (1920, 1080), (2160, 3840)]


@pytest.mark.parametrize(("height", "width"), ODD_SIZES)
@pytest.mark.parametrize("size", [256, 112, 24])
def test_bilinear_frames_equal_the_formula_to_the_bit(height: int, width: int, size: int) -> None:
    """The bits that bundles of 0.2.0 were made with: rows first, rounded to float32 after every operation."""

    def taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = round((target - size) / 2)
        at = (np.arange(start, start + size, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target)
        at = np.maximum(at - np.float32(0.5), np.float32(0))
        first = np.minimum(at.astype(np.int64), source - 1)
        return first, np.minimum(first + 1, source - 1), (at - first).astype(np.float32)

    rule = FramePreprocessing(size=size, fit="crop", filter="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    rgb = frames(height, width)
    tall, wide = resized_size(height, width, rule)
    upper, lower, down = taps(height, tall)
    before, after, right = taps(width, wide)
    rows = rgb[:, upper] * (1 - down)[:, None, None] + rgb[:, lower] * down[:, None, None]
    values = rows[:, :, before] * (1 - right)[:, None] + rows[:, :, after] * right[:, None]
    mean, std = np.array(rule.mean), np.array(rule.std)
    scaled = values * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)
    assert prepare_frames(rgb, rule).tobytes() == np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)).tobytes()
    rounded = FrameInput(FramePreprocessing(size, "crop", "bilinear-bytes", rule.mean, rule.std), whole_bytes=True)
    assert frames_for(rgb, rounded).tobytes() == np.round(values).astype(np.uint8).tobytes()


@pytest.mark.parametrize("rule", [BLIP, SLOW_BYTES, VIDEOMAE, RESNET3D], ids=lambda rule: rule.filter)
def test_bytes_normalised_are_the_float_frames(rule: FramePreprocessing) -> None:
    rgb = frames(241, 427)
    whole = frames_for(rgb, FrameInput(rule, whole_bytes=True))
    assert whole.dtype == np.uint8
    assert whole.shape == (2, rule.size, rule.size, 3)
    assert np.stack([normalise(frame, rule) for frame in whole]).tobytes() == prepare_frames(rgb, rule).tobytes()


def test_a_preparer_keeps_no_trace_of_earlier_frames_or_sizes() -> None:
    for form in (FrameInput(SLOW_BYTES, whole_bytes=True), FrameInput(SLOW, whole_bytes=False)):
        preparer = FramePreparer(form)
        done = [(rgb, preparer.prepare(rgb)) for size in ((240, 320), (90, 50), (240, 320)) for rgb in frames(*size)]
        for rgb, prepared in done:
            assert prepared.tobytes() == frames_for(rgb[None], form)[0].tobytes()


def test_no_frames_give_an_empty_array_of_the_right_form() -> None:
    assert frames_for([], FrameInput(SLOW_BYTES, whole_bytes=True)).shape == (0, 256, 256, 3)
    assert frames_for([], FrameInput(SLOW, whole_bytes=False)).shape == (0, 3, 256, 256)


def graph(dtype: str, name: str = "frames") -> Graph:
    return Graph("cnn.onnx", 17, (Tensor(name, dtype, ("batch", 8, 256, 256, 3)),), (), {}, "fp32", {})


def test_the_graphs_input_decides_between_bytes_and_floats() -> None:
    assert frame_input(graph("uint8"), SLOW_BYTES) == FrameInput(SLOW_BYTES, whole_bytes=True)
    assert frame_input(graph("uint8", "pixels"), BLIP).whole_bytes
    assert frame_input(graph("float32"), SLOW_BYTES) == FrameInput(SLOW_BYTES, whole_bytes=False)
    assert not frame_input(graph("uint8", "token_ids"), BLIP).whole_bytes


def test_a_graph_of_bytes_with_a_filter_of_fractions_is_refused() -> None:
    with pytest.raises(DataError, match="takes whole bytes, expected float32") as caught:
        frame_input(graph("uint8"), SLOW)
    assert caught.value.code == "bad_graph"


def test_a_frame_too_long_and_thin_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(DataError, match="too long and thin") as caught:
        prepare_frames(np.zeros((1, 2, 4_000_000, 3), np.uint8), SLOW)
    assert caught.value.code == "video_too_large"
