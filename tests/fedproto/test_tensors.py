import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.tensors import check_shapes, chunks, decode_params, encode_params, payload_bytes, shapes

SPEC = HeadSpec(inputs=3, outputs=2, hidden=(4,))


def test_the_payload_is_little_endian_float32_in_the_heads_order():
    params = {name: np.full(shape, index + 0.5, np.float32) for index, (name, shape) in enumerate(SPEC.shapes.items())}
    values = np.repeat(np.array([0.5, 1.5, 2.5, 3.5], "<f4"), [12, 4, 8, 2])
    assert encode_params(SPEC, params) == values.tobytes()
    assert payload_bytes(SPEC) == 4 * 26


def test_params_survive_the_codec_to_the_bit():
    params = initial_params(SPEC, seed=3)
    decoded = decode_params(SPEC, encode_params(SPEC, params), whose="x")
    assert params_sha256(decoded) == params_sha256(params)
    assert list(decoded) == list(params)


def test_decoding_copies_nothing_and_the_result_cannot_be_written():
    payload = encode_params(SPEC, initial_params(SPEC, seed=3))
    decoded = decode_params(SPEC, payload, whose="x")
    assert all(np.shares_memory(tensor, np.frombuffer(payload, np.uint8)) for tensor in decoded.values())
    with pytest.raises(ValueError, match="read-only"):
        decoded["0.bias"][0] = 1


@pytest.mark.parametrize("size", [0, 103, 105, 1 << 20])
def test_a_payload_of_another_size_is_refused(size):
    with pytest.raises(DataError, match=f"x: payload of {size} bytes, expected 104") as refused:
        decode_params(SPEC, bytes(size), whose="x")
    assert refused.value.code == "payload_size"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 13, 25])
def test_a_value_that_is_not_finite_is_refused(value, place):
    values = np.zeros(26, "<f4")
    values[place] = value
    with pytest.raises(DataError, match="holds NaN or infinity") as refused:
        decode_params(SPEC, values.tobytes(), whose="x")
    assert refused.value.code == "not_finite"


def test_a_model_that_is_not_the_heads_is_not_sent():
    params = initial_params(SPEC, seed=3)
    with pytest.raises(DataError, match="expected float32"):
        encode_params(SPEC, {**params, "0.bias": params["0.bias"].astype(np.float64)})


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        (((4, 3), (4,), (2, 4)), "tensor_names"),
        (((4, 3), (4,), (2, 4), (2,), (1,)), "tensor_names"),
        (((3, 4), (4,), (2, 4), (2,)), "tensor_shape"),
        (((12,), (4,), (2, 4), (2,)), "tensor_shape"),
    ],
)
def test_shapes_that_are_not_the_heads_are_refused(shape, code):
    with pytest.raises(DataError) as refused:
        check_shapes(SPEC, shape, whose="x")
    assert refused.value.code == code
    check_shapes(SPEC, shapes(SPEC), whose="x")


def test_a_head_that_is_too_large_is_refused_before_anything_is_allocated():
    with pytest.raises(DataError) as refused:
        payload_bytes(HeadSpec(inputs=60_000, outputs=6_000, hidden=()))
    assert refused.value.code == "model_too_large"


def test_chunks_are_the_payload():
    payload = bytes(range(256)) * 9
    pieces = list(chunks(payload, size=1000))
    assert [len(piece) for piece in pieces] == [1000, 1000, 304]
    assert b"".join(pieces) == payload
