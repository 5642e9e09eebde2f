"""Messages survive the wire unchanged, and nothing else is accepted."""

import dataclasses
import random

import msgspec
import pytest
from flamest.base.errors import DataError, FlamestError
from flamest.fedproto import flamest_v1_pb2 as pb
from flamest.fedproto import messages as m
from flamest.fedproto.calibration import Calibration
from flamest.fedproto.calibration_counts import ClassScores, ConfidenceSums, ScoreCounts
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import (
    ClassCount,
    Evaluation,
    Phase,
    Receipt,
    RunSettings,
    Strategy,
    SubjectEvaluation,
    TaskStatus,
    TrainSettings,
)

A, B, C = "a1" * 32, "b2" * 32, "c3" * 32
RUN = RunSettings(
    run="r1",
    labels=("x", "y"),
    head=HeadSpec(inputs=3, outputs=2, hidden=(4,)),
    rounds=7,
    min_silos=2,
    deadline_s=12.5,
    fingerprint="f",
    seed=9,
    strategy=Strategy(name="fedprox", mu=0.5),
    train=TrainSettings(epochs=2, batch_size=16, learning_rate=0.02, weight_decay=0.003),
)
TOLD = Evaluation(0.75, 3, 5, (ClassCount(1, 2, 3), ClassCount(4, 1, 2)))
HEADER = m.UpdateHeader(A, 3, B, "0f" * 16, 41, ((4, 3), (4,)), 64, C, TOLD, "int8", 0.25, True)
STANDING = TaskStatus(Phase.EVALUATE, 9, B, 12.25, 0.5, 4, 6, 1.25)
SUMS = ConfidenceSums(-3, (5, 0, -1, 2, 0, 1, 2, 3, 4, 2))
SCORES = ScoreCounts(tuple(range(-14, 15)), (ClassScores(1, 7, tuple(range(29))), ClassScores(3, -2, (1,) * 29)))
COUNTED = m.CalibrationReport(A, 9, 1.5, 900, 1.5, SCORES)
CALIBRATED = Calibration(1.25, (0.5, -0.25), 0.9, 3.0, 120, (1,), 4)
MODEL = m.ModelHeader(7, C, 640, calibration=CALIBRATED)
REPORT = m.EvaluationReport(A, 9, (SubjectEvaluation(1, TOLD), SubjectEvaluation(2, TOLD)))

# encoder, decoder, record, the message it becomes
ROUND_TRIPS = {
    "JoinRequest": (m.encode_join_request, m.decode_join_request, 1, pb.JoinRequest),
    "JoinReply": (lambda r: m.encode_join_reply(*r), m.decode_join_reply, (1, RUN), pb.JoinReply),
    "WaitRequest": (m.encode_wait_request, m.decode_wait_request, m.WaitRequest(A, 4, 2.5, "0d" * 16), pb.WaitRequest),
    "WaitReply": (m.encode_task_status, lambda data: m.decode_task_status(data, RUN), STANDING, pb.WaitReply),
    "FetchRequest": (m.encode_fetch_request, m.decode_fetch_request, m.FetchRequest(A, 6, B, 2), pb.FetchRequest),
    "ModelHeader": (m.encode_model_header, m.decode_model_part, MODEL, pb.ModelPart),
    "ModelData": (m.encode_model_data, m.decode_model_part, b"\x01\x02", pb.ModelPart),
    "UpdateHeader": (m.encode_update_header, m.decode_update_part, HEADER, pb.UpdatePart),
    "UpdateData": (m.encode_update_data, m.decode_update_part, b"\x03", pb.UpdatePart),
    "EvaluationReport": (m.encode_evaluation_report, m.decode_evaluation_report, REPORT, pb.EvaluationReport),
    "EvaluationReceipt": (
        m.encode_evaluation_receipt,
        m.decode_evaluation_receipt,
        m.EvaluationReceipt(9, 2),
        pb.EvaluationReceipt,
    ),
    "CalibrationReport": (m.encode_calibration_report, m.decode_calibration_report, COUNTED, pb.CalibrationReport),
    "ConfidenceSums": (
        m.encode_calibration_report,
        m.decode_calibration_report,
        m.CalibrationReport(A, 9, 0.0, 900, 1.5, SUMS),
        pb.CalibrationReport,
    ),
    "CalibrationReceipt": (m.encode_calibration_receipt, m.decode_calibration_receipt, 9, pb.CalibrationReceipt),
    "Receipt": (m.encode_receipt, m.decode_receipt, Receipt(8, "0e" * 16, A), pb.Receipt),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_every_record_comes_back_equal(name):
    encode, decode, record, _ = ROUND_TRIPS[name]
    assert decode(encode(record)) == record


OTHER_STEP = {  # of a calibration; a report is of one
    "CalibrationReport": {"ConfidenceSums.excess", "ConfidenceSums.lost"},
    "ConfidenceSums": {"CalibrationReport.temperature", "ScoreCounts.counts", "ScoreCounts.by_class"},
}


def unset_fields(message) -> list[str]:
    """Names of fields, inner messages' included, that hold nothing."""
    found = []
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.containing_oneof is not None:
            if message.WhichOneof(field.containing_oneof.name) != field.name:
                continue
        elif not value and not (field.message_type and not field.is_repeated and message.HasField(field.name)):
            found.append(f"{message.DESCRIPTOR.name}.{field.name}")
        if field.message_type:
            for inner in value if field.is_repeated else [value]:
                found += [name for name in unset_fields(inner) if name != "TensorShape.index"]
    return found


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_no_field_of_the_proto_is_forgotten(name):
    encode, _, record, kind = ROUND_TRIPS[name]
    assert set(unset_fields(kind.FromString(encode(record)))) == OTHER_STEP.get(name, set())


def test_a_forgotten_field_would_be_noticed():
    assert unset_fields(pb.Receipt(round=1, update_id=b"x")) == ["Receipt.payload_sha256"]


@pytest.mark.parametrize(
    "record", [HEADER, m.WaitRequest(A, 4, 2.5, "0d" * 16), m.ModelHeader(7, C, 640), Receipt(8, "0e" * 16, A)]
)
def test_every_changed_field_of_a_record_survives_the_wire(record):
    encode, decode, *_ = next(t for t in ROUND_TRIPS.values() if type(t[2]) is type(record))
    other = {str: lambda v: ("9d" * 32)[: len(v)], int: lambda v: v + 1, float: lambda v: v + 0.5}
    for field in dataclasses.fields(record):
        old = getattr(record, field.name)
        if field.name == "evaluation":
            new = None
        elif field.name == "shapes":
            new = ((2, 2, 2),)
        elif field.name == "codec":
            new = "sparse_int8"
        elif field.name == "shared":
            new = False
        elif field.name == "calibration":
            new = CALIBRATED
        else:
            new = other[type(old)](old)
        changed = dataclasses.replace(record, **{field.name: new})
        assert decode(encode(changed)) == changed != record


def test_every_message_of_the_proto_is_covered():
    covered = {kind.DESCRIPTOR.name for *_, kind in ROUND_TRIPS.values()} | set(ROUND_TRIPS)
    inner = {
        "TensorShape",
        "Evaluation",
        "ClassCount",
        "SubjectEvaluation",
        "Calibration",
        "ScoreCounts",
        "ClassScores",
    }
    assert set(pb.DESCRIPTOR.message_types_by_name) <= covered | inner


def test_from_silo_to_coordinator_there_is_no_text():
    sent = [
        pb.JoinRequest,
        pb.WaitRequest,
        pb.FetchRequest,
        pb.UpdatePart,
        pb.UpdateHeader,
        pb.TensorShape,
        pb.Evaluation,
        pb.ClassCount,
        pb.EvaluationReport,
        pb.SubjectEvaluation,
        pb.CalibrationReport,
        pb.ConfidenceSums,
        pb.ScoreCounts,
        pb.ClassScores,
    ]
    for kind in sent:
        for field in kind.DESCRIPTOR.fields:
            assert field.type != field.TYPE_STRING, f"{kind.DESCRIPTOR.name}.{field.name}"


def with_unknown_field(data: bytes) -> bytes:
    return data + b"\xfa\x3e\x01x"  # field 1007, length-delimited


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_an_unknown_field_is_refused(name):
    encode, decode, record, _ = ROUND_TRIPS[name]
    with pytest.raises(DataError, match="a field that this protocol does not know") as refused:
        decode(with_unknown_field(encode(record)))
    assert refused.value.code == "malformed"


def test_an_unknown_field_inside_the_header_is_refused():
    header = pb.UpdateHeader.FromString(
        with_unknown_field(pb.UpdatePart.FromString(m.encode_update_header(HEADER)).header.SerializeToString())
    )
    with pytest.raises(DataError, match="does not know"):
        m.decode_update_part(pb.UpdatePart(header=header).SerializeToString())


def changed_header(**fields) -> bytes:
    message = pb.UpdatePart.FromString(m.encode_update_header(HEADER))
    for name, value in fields.items():
        setattr(message.header, name, value)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"examples": 0}, "examples"),
        ({"examples": 2**32 - 1}, "examples"),
        ({"settings_sha256": b"short"}, "malformed"),
        ({"base_sha256": b""}, "malformed"),
        ({"update_id": b"x" * 17}, "malformed"),
        ({"payload_sha256": b"x" * 31}, "malformed"),
        ({"codec": 0}, "malformed"),
        ({"codec": 77}, "malformed"),
    ],
)
def test_a_header_out_of_range_is_refused_with_its_code(fields, code):
    with pytest.raises(DataError) as refused:
        m.decode_update_part(changed_header(**fields))
    assert refused.value.code == code


@pytest.mark.parametrize(
    "impossible",
    [
        Evaluation(float("nan"), 1, 2),
        Evaluation(float("inf"), 1, 2),
        Evaluation(-1.0, 1, 2),
        Evaluation(1.0, 3, 2),
        Evaluation(1.0, 0, 0),
        Evaluation(1.0, 2, 4, (ClassCount(0, 2, 1),)),
        Evaluation(1.0, 2, 4, (ClassCount(0, 1, 1), ClassCount(0, 1, 1))),
        Evaluation(1.0, 2, 4, (ClassCount(1, 1, 1), ClassCount(0, 1, 1))),
        Evaluation(1.0, 2, 4, (ClassCount(0, 1, 5),)),
        Evaluation(1.0, 1, 4, (ClassCount(0, 2, 2),)),
        Evaluation(1.0, 1, 4, (ClassCount(0, 0, 0),)),
    ],
)
def test_an_impossible_evaluation_is_refused(impossible):
    with pytest.raises(DataError) as refused:
        m.decode_update_part(m.encode_update_header(dataclasses.replace(HEADER, evaluation=impossible)))
    assert refused.value.code == "evaluation"


def test_a_report_with_repeated_or_unordered_subjects_is_refused():
    one, two = REPORT.results
    for results in ((one, one), (two, one)):
        with pytest.raises(DataError, match="each once, ascending") as refused:
            m.decode_evaluation_report(m.encode_evaluation_report(dataclasses.replace(REPORT, results=results)))
        assert refused.value.code == "malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0},
        {"count": 2**31},
        {"noise": float("nan")},
        {"noise": -1.0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 51.0},
        {"figures": None},
        {"figures": SUMS},
        {"figures": ScoreCounts((1,) * 28)},
        {"figures": ScoreCounts((901,) * 29)},
        {"figures": ScoreCounts((2**63 - 1,) * 29)},
        {"figures": ScoreCounts((1,) * 29, (ClassScores(1, 1801, (0,) * 29),))},
        {"figures": ScoreCounts((1,) * 29, (ClassScores(1, 5, (0,) * 30),))},
        {"figures": ScoreCounts((1,) * 29, (ClassScores(1, 5, (0,) * 29), ClassScores(1, 5, (0,) * 29)))},
        {"temperature": 0.0, "figures": ConfidenceSums(2, (0,) * 9)},
        {"temperature": 0.0, "figures": ConfidenceSums(1801, (0,) * 10)},
        {"temperature": 0.0, "figures": ConfidenceSums(0, (-(2**63),) * 10)},
    ],
)
def test_impossible_counts_for_a_calibration_are_refused(changes):
    with pytest.raises(DataError) as refused:
        m.decode_calibration_report(m.encode_calibration_report(dataclasses.replace(COUNTED, **changes)))
    assert refused.value.code == "evaluation"


def test_sums_and_counts_at_once_are_refused():
    both = pb.CalibrationReport.FromString(m.encode_calibration_report(COUNTED))
    both.sums.CopyFrom(pb.ConfidenceSums(lost=[0] * 10))
    with pytest.raises(DataError, match="at once"):
        m.decode_calibration_report(both.SerializeToString())


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": float("nan")},
        {"temperature": 0.0},
        {"thresholds": (0.0, float("inf"))},
        {"coverage": 1.0},
        {"classes": (1, 1)},
        {"classes": (2,)},
        {"softening": 0.0},
        {"clips": 2**40},
    ],
)
def test_a_calibration_that_no_model_has_is_refused_on_arrival(changes):
    hostile = msgspec.structs.replace(CALIBRATED, **changes)
    with pytest.raises(DataError) as refused:
        m.decode_model_part(m.encode_model_header(m.ModelHeader(7, C, 640, calibration=hostile)))
    assert refused.value.code == "malformed"


def test_tensors_out_of_order_are_refused():
    message = pb.UpdatePart.FromString(m.encode_update_header(HEADER))
    message.header.tensors[0].index = 1
    with pytest.raises(DataError, match="not numbered"):
        m.decode_update_part(message.SerializeToString())


def test_an_unknown_phase_is_refused():
    message = pb.WaitReply.FromString(m.encode_task_status(TaskStatus(Phase.WAIT, 1, A, 0, 0)))
    message.phase = 9
    with pytest.raises(DataError, match="phase 9"):
        m.decode_task_status(message.SerializeToString(), RUN)


def test_settings_with_another_digest_are_refused():
    message = pb.JoinReply.FromString(m.encode_join_reply(1, RUN))
    message.settings = message.settings.replace(b'"rounds":7', b'"rounds":8')
    with pytest.raises(DataError) as refused:
        m.decode_join_reply(message.SerializeToString())
    assert refused.value.code == "digest"


def test_mutated_bytes_give_a_record_or_a_data_error():
    random_ = random.Random(4)
    refused = 0
    for _ in range(3000):
        encode, decode, record, _ = ROUND_TRIPS[random_.choice(list(ROUND_TRIPS))]
        data = bytearray(encode(record))
        for _ in range(random_.randint(1, 4)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        try:
            decode(bytes(data[: random_.randint(1, len(data))]))
        except FlamestError:
            refused += 1
    assert refused > 1000
