"""The lossy codecs: literal bytes (docs/reference/wire.md), error feedback, and what a decoder refuses."""

import struct

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.fedproto.codecs import (
    CODECS,
    add_delta,
    apply_delta,
    decode_delta,
    encode_delta,
    flatten_params,
    more_exact,
    size_bounds,
)
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256, split_params

SPEC = HeadSpec(inputs=3, outputs=2, hidden=())  # 0.weight [2, 3], 0.bias [2]
BIG = HeadSpec(inputs=40, outputs=7, hidden=(16,))
LOSSY = CODECS[1:]


def zeros(spec=SPEC):
    return {name: np.zeros(shape, np.float32) for name, shape in spec.shapes.items()}


def params(*values):
    return split_params(SPEC, np.array(values, np.float32))


def changes(spec, seed):
    random = np.random.default_rng(seed)
    return split_params(spec, random.standard_normal(spec.parameters).astype(np.float32))


def test_fp16_is_two_little_endian_bytes_per_value():
    coded = encode_delta("fp16", SPEC, params(1, -2, 0.5, 0, 65504, 1e6, -1e6, 2**-24), zeros(), None)
    assert coded.payload.hex(" ", 2) == "003c 00c0 0038 0000 ff7b ff7b fffb 0100"
    assert coded.residual[5] == np.float32(1e6) - 65504  # what is beyond fp16 waits for the next round


def test_int8_is_the_rows_scales_and_then_the_values():
    coded = encode_delta("int8", SPEC, params(127, -127, 63, 0, 0, 0, 25.4, -12.7), zeros(), None)
    scales = struct.pack("<fff", 1.0, 0.0, np.float32(25.4) / np.float32(127))  # two rows of the weight, one bias
    assert coded.payload == scales + bytes.fromhex("7f 81 3f 00 00 00 7f c0")
    assert coded.payload[:8].hex() == "0000803f00000000"


def test_sparse_int8_is_count_scales_gaps_and_values():
    spec = HeadSpec(inputs=300, outputs=2, hidden=())
    values = np.zeros(602, np.float32)
    values[[0, 260, 261, 601]] = [127, -254, 2, 127]
    coded = encode_delta("sparse_int8", spec, split_params(spec, values), zeros(spec), None)
    assert coded.payload == bytes.fromhex(
        "04000000"  # four values
        "00000040 0000803f"  # a step of 0.weight is 2, of 0.bias 1
        "00 ff04 00 ff54"  # skipped before each: 0, 255 + 4, 0, 255 + 84
        "40 81 01 7f"  # 127 is 63.5 steps of 2, rounded to the even 64
    )
    assert np.flatnonzero(coded.decoded).tolist() == [0, 260, 261, 601]


def test_the_sizes_of_the_papers_head():
    spec = HeadSpec(inputs=2816, outputs=101)
    assert size_bounds("fp32", spec) == (6398356, 6398356)
    assert size_bounds("fp16", spec) == (3199178, 3199178)
    assert size_bounds("int8", spec) == (1603077, 1603077)
    kept = 159959
    coded = encode_delta("sparse_int8", spec, changes(spec, 1), zeros(spec), None)
    assert struct.unpack_from("<I", coded.payload) == (kept,)
    assert 2 * len(coded.payload) < 700_000


@pytest.mark.parametrize("codec", LOSSY)
def test_both_sides_have_the_same_model_to_the_bit(codec):
    base, wanted = initial_params(BIG, 1), initial_params(BIG, 2)
    coded = encode_delta(codec, BIG, wanted, base, None)
    read = apply_delta(codec, BIG, coded.payload, base, whose="x")
    assert params_sha256(read) == params_sha256(add_delta(BIG, base, coded.decoded, whose="x"))
    assert np.array_equal(decode_delta(codec, BIG, coded.payload, whose="x"), coded.decoded)
    assert 0 < coded.error < 1
    assert coded.error == pytest.approx(np.linalg.norm(coded.residual) / np.linalg.norm(coded.decoded + coded.residual))


@pytest.mark.parametrize("codec", LOSSY)
def test_with_error_feedback_decoded_sums_follow_the_true_sums(codec):
    base = zeros(BIG)
    meant, arrived, carried = np.zeros(BIG.parameters), np.zeros(BIG.parameters), None
    for seed in range(60):
        delta = changes(BIG, seed)
        coded = encode_delta(codec, BIG, delta, base, carried)
        meant += flatten_params(delta)
        arrived += coded.decoded
        carried = coded.residual
    assert np.abs(meant - arrived - carried).max() < 1e-3  # nothing but what is still carried is missing
    without = sum(
        encode_delta(codec, BIG, changes(BIG, seed), base, None).decoded.astype(np.float64) for seed in range(60)
    )
    assert np.linalg.norm(meant - arrived) < 0.5 * np.linalg.norm(meant - without) or codec != "sparse_int8"


@pytest.mark.parametrize("codec", LOSSY)
def test_an_empty_delta_is_encoded_without_loss(codec):
    base = initial_params(BIG, 1)
    coded = encode_delta(codec, BIG, base, base, None)
    assert coded.error == 0.0
    assert params_sha256(apply_delta(codec, BIG, coded.payload, base, whose="x")) == params_sha256(base)


def test_the_more_exact_of_two_codecs_is_used():
    assert more_exact("int8", "fp32") == "fp32"
    assert more_exact("fp16", "sparse_int8") == "fp16"


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        ("fp16", bytes(15)),
        ("fp16", bytes(17)),
        ("int8", bytes(19)),
        ("int8", bytes(21)),
        ("sparse_int8", bytes(11)),
        ("sparse_int8", bytes(12 + 17)),
    ],
)
def test_a_payload_of_another_size_is_refused(codec, payload):
    with pytest.raises(DataError, match="payload of") as refused:
        decode_delta(codec, SPEC, payload, whose="x")
    assert refused.value.code == "payload_size"


SPARSE = "{count:08x}0000803f0000803f{rest}"


@pytest.mark.parametrize(
    ("codec", "payload", "why"),
    [
        ("fp16", "007e" + 14 * "00", "NaN"),
        ("fp16", "007c" + 14 * "00", "infinity"),
        ("int8", "0000c07f" + 16 * "00", "not finite"),
        ("int8", "000080bf" + 16 * "00", "below 0"),
        ("int8", 12 * "00" + "80" + 7 * "00", "-128"),
        ("sparse_int8", "01000000" + "0000803f" * 2 + "00" + "80", "-128"),
        ("sparse_int8", "02000000" + "0000803f" * 2 + "00" + "0101", "1 gaps for 2"),
        ("sparse_int8", "01000000" + "0000803f" * 2 + "0000" + "01", "2 gaps for 1"),
        ("sparse_int8", "01000000" + "0000803f" * 2 + "00ff" + "01", "1 gaps for 1"),
        ("sparse_int8", "01000000" + "0000803f" * 2 + "08" + "01", "position 8 of 8"),
        ("sparse_int8", "01000000" + "0000803f" * 2 + "ff00" + "01", "position 255 of 8"),
        ("sparse_int8", "ffffffff" + "0000803f" * 2 + "00" + "01", "4294967295 values"),
        ("sparse_int8", "00000000" + "0000807f" + "0000803f", "not finite"),
    ],
)
def test_invalid_codes_are_refused(codec, payload, why):
    with pytest.raises(DataError, match=why) as refused:
        decode_delta(codec, SPEC, bytes.fromhex(payload), whose="x")
    assert refused.value.code == "bad_codes"


def test_a_sum_beyond_float32_is_refused():
    base = params(*([3e38] * 8))
    payload = struct.pack("<fff", 3e36, 0, 0) + bytes.fromhex("7f7f7f0000000000")
    with pytest.raises(DataError, match="NaN or infinity") as refused:
        apply_delta("int8", SPEC, payload, base, whose="x")
    assert refused.value.code == "not_finite"


@pytest.mark.parametrize("codec", LOSSY)
def test_mutated_payloads_are_refused_or_decode_and_never_crash(codec):
    random = np.random.default_rng(0)
    good = bytearray(encode_delta(codec, BIG, changes(BIG, 3), zeros(BIG), None).payload)
    for _ in range(500):
        bad = good.copy()
        for place in random.integers(0, len(bad), 3):
            bad[place] = random.integers(256)
        try:
            decoded = decode_delta(codec, BIG, bytes(bad), whose="x")
        except DataError:
            continue
        assert decoded.shape == (BIG.parameters,)
