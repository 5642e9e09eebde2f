from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_WAIT: _ClassVar[Phase]
    PHASE_OPEN: _ClassVar[Phase]
    PHASE_FINISHED: _ClassVar[Phase]
    PHASE_EVALUATE: _ClassVar[Phase]
    PHASE_CALIBRATE: _ClassVar[Phase]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_FP32: _ClassVar[Codec]
    CODEC_FP16: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]
    CODEC_SPARSE_INT8: _ClassVar[Codec]
PHASE_UNSPECIFIED: Phase
PHASE_WAIT: Phase
PHASE_OPEN: Phase
PHASE_FINISHED: Phase
PHASE_EVALUATE: Phase
PHASE_CALIBRATE: Phase
CODEC_UNSPECIFIED: Codec
CODEC_FP32: Codec
CODEC_FP16: Codec
CODEC_INT8: Codec
CODEC_SPARSE_INT8: Codec

class JoinRequest(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("protocol", "settings", "settings_sha256")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_SHA256_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    settings: bytes
    settings_sha256: bytes
    def __init__(self, protocol: _Optional[int] = ..., settings: _Optional[bytes] = ..., settings_sha256: _Optional[bytes] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("settings_sha256", "answered_round", "max_wait_ms", "instance")
    SETTINGS_SHA256_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_ROUND_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    settings_sha256: bytes
    answered_round: int
    max_wait_ms: int
    instance: bytes
    def __init__(self, settings_sha256: _Optional[bytes] = ..., answered_round: _Optional[int] = ..., max_wait_ms: _Optional[int] = ..., instance: _Optional[bytes] = ...) -> None: ...

class WaitReply(_message.Message):
    __slots__ = ("phase", "round", "model_sha256", "deadline_ms", "poll_after_ms", "counted_round", "subjects", "temperature")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    POLL_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_ROUND_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    round: int
    model_sha256: bytes
    deadline_ms: int
    poll_after_ms: int
    counted_round: int
    subjects: int
    temperature: float
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., round: _Optional[int] = ..., model_sha256: _Optional[bytes] = ..., deadline_ms: _Optional[int] = ..., poll_after_ms: _Optional[int] = ..., counted_round: _Optional[int] = ..., subjects: _Optional[int] = ..., temperature: _Optional[float] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("settings_sha256", "round", "held_sha256", "subject")
    SETTINGS_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    HELD_SHA256_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    settings_sha256: bytes
    round: int
    held_sha256: bytes
    subject: int
    def __init__(self, settings_sha256: _Optional[bytes] = ..., round: _Optional[int] = ..., held_sha256: _Optional[bytes] = ..., subject: _Optional[int] = ...) -> None: ...

class ModelHeader(_message.Message):
    __slots__ = ("round", "model_sha256", "codec", "payload_bytes", "calibration")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    round: int
    model_sha256: bytes
    codec: Codec
    payload_bytes: int
    calibration: Calibration
    def __init__(self, round: _Optional[int] = ..., model_sha256: _Optional[bytes] = ..., codec: _Optional[_Union[Codec, str]] = ..., payload_bytes: _Optional[int] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("temperature", "thresholds", "coverage", "softening", "clips", "classes", "silos")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SOFTENING_FIELD_NUMBER: _ClassVar[int]
    CLIPS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SILOS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    thresholds: _containers.RepeatedScalarFieldContainer[float]
    coverage: float
    softening: float
    clips: int
    classes: _containers.RepeatedScalarFieldContainer[int]
    silos: int
    def __init__(self, temperature: _Optional[float] = ..., thresholds: _Optional[_Iterable[float]] = ..., coverage: _Optional[float] = ..., softening: _Optional[float] = ..., clips: _Optional[int] = ..., classes: _Optional[_Iterable[int]] = ..., silos: _Optional[int] = ...) -> None: ...

class ModelPart(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: ModelHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[ModelHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class TensorShape(_message.Message):
    __slots__ = ("index", "dims")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    index: int
    dims: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[int] = ..., dims: _Optional[_Iterable[int]] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("loss", "correct", "count", "by_class")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    BY_CLASS_FIELD_NUMBER: _ClassVar[int]
    loss: float
    correct: int
    count: int
    by_class: _containers.RepeatedCompositeFieldContainer[ClassCount]
    def __init__(self, loss: _Optional[float] = ..., correct: _Optional[int] = ..., count: _Optional[int] = ..., by_class: _Optional[_Iterable[_Union[ClassCount, _Mapping]]] = ...) -> None: ...

class ClassCount(_message.Message):
    __slots__ = ("label", "correct", "count")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    label: int
    correct: int
    count: int
    def __init__(self, label: _Optional[int] = ..., correct: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("settings_sha256", "round", "base_sha256", "update_id", "examples", "codec", "tensors", "payload_bytes", "payload_sha256", "evaluation", "codec_error", "shared")
    SETTINGS_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CODEC_ERROR_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    settings_sha256: bytes
    round: int
    base_sha256: bytes
    update_id: bytes
    examples: int
    codec: Codec
    tensors: _containers.RepeatedCompositeFieldContainer[TensorShape]
    payload_bytes: int
    payload_sha256: bytes
    evaluation: Evaluation
    codec_error: float
    shared: bool
    def __init__(self, settings_sha256: _Optional[bytes] = ..., round: _Optional[int] = ..., base_sha256: _Optional[bytes] = ..., update_id: _Optional[bytes] = ..., examples: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ..., tensors: _Optional[_Iterable[_Union[TensorShape, _Mapping]]] = ..., payload_bytes: _Optional[int] = ..., payload_sha256: _Optional[bytes] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., codec_error: _Optional[float] = ..., shared: bool = ...) -> None: ...

class UpdatePart(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("round", "update_id", "payload_sha256")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    round: int
    update_id: bytes
    payload_sha256: bytes
    def __init__(self, round: _Optional[int] = ..., update_id: _Optional[bytes] = ..., payload_sha256: _Optional[bytes] = ...) -> None: ...

class SubjectEvaluation(_message.Message):
    __slots__ = ("subject", "evaluation")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    subject: int
    evaluation: Evaluation
    def __init__(self, subject: _Optional[int] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class EvaluationReport(_message.Message):
    __slots__ = ("settings_sha256", "round", "results")
    SETTINGS_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    settings_sha256: bytes
    round: int
    results: _containers.RepeatedCompositeFieldContainer[SubjectEvaluation]
    def __init__(self, settings_sha256: _Optional[bytes] = ..., round: _Optional[int] = ..., results: _Optional[_Iterable[_Union[SubjectEvaluation, _Mapping]]] = ...) -> None: ...

class EvaluationReceipt(_message.Message):
    __slots__ = ("round", "results")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    round: int
    results: int
    def __init__(self, round: _Optional[int] = ..., results: _Optional[int] = ...) -> None: ...

class CalibrationReport(_message.Message):
    __slots__ = ("settings_sha256", "round", "temperature", "count", "noise", "sums", "counts")
    SETTINGS_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    settings_sha256: bytes
    round: int
    temperature: float
    count: int
    noise: float
    sums: ConfidenceSums
    counts: ScoreCounts
    def __init__(self, settings_sha256: _Optional[bytes] = ..., round: _Optional[int] = ..., temperature: _Optional[float] = ..., count: _Optional[int] = ..., noise: _Optional[float] = ..., sums: _Optional[_Union[ConfidenceSums, _Mapping]] = ..., counts: _Optional[_Union[ScoreCounts, _Mapping]] = ...) -> None: ...

class ConfidenceSums(_message.Message):
    __slots__ = ("excess", "lost")
    EXCESS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    excess: int
    lost: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, excess: _Optional[int] = ..., lost: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreCounts(_message.Message):
    __slots__ = ("counts", "by_class")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    BY_CLASS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    by_class: _containers.RepeatedCompositeFieldContainer[ClassScores]
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., by_class: _Optional[_Iterable[_Union[ClassScores, _Mapping]]] = ...) -> None: ...

class ClassScores(_message.Message):
    __slots__ = ("label", "clips", "counts")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLIPS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    label: int
    clips: int
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, label: _Optional[int] = ..., clips: _Optional[int] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class CalibrationReceipt(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...
