"""Encoding of records as protobuf messages, and strict decoding: one module for each kind of call.

Handlers and clients get raw bytes and call these functions, so that a message that does not parse is
refused with a reason (gRPC alone would answer INTERNAL). Every decoder raises DataError
(``malformed``) for bytes that are not the message, unknown fields, digests of a wrong length, enum
values without a name and numbers out of range.
"""

from ..bounds import MAX_SUBJECTS
from .calibrations import (
    CalibrationReport,
    decode_calibration_receipt,
    decode_calibration_report,
    encode_calibration_receipt,
    encode_calibration_report,
)
from .evaluations import (
    EvaluationReceipt,
    EvaluationReport,
    decode_evaluation_receipt,
    decode_evaluation_report,
    encode_evaluation_receipt,
    encode_evaluation_report,
)
from .models import (
    FetchRequest,
    ModelHeader,
    decode_fetch_request,
    decode_model_part,
    encode_fetch_request,
    encode_model_data,
    encode_model_header,
)
from .parsing import MAX_EXAMPLES
from .tasks import (
    WaitRequest,
    decode_join_reply,
    decode_join_request,
    decode_task_status,
    decode_wait_request,
    encode_join_reply,
    encode_join_request,
    encode_task_status,
    encode_wait_request,
)
from .updates import (
    MAX_DIMS,
    MAX_TENSORS,
    UpdateHeader,
    decode_receipt,
    decode_update_part,
    encode_receipt,
    encode_update_data,
    encode_update_header,
)

__all__ = [
    "MAX_DIMS",
    "MAX_EXAMPLES",
    "MAX_SUBJECTS",
    "MAX_TENSORS",
    "CalibrationReport",
    "EvaluationReceipt",
    "EvaluationReport",
    "FetchRequest",
    "ModelHeader",
    "UpdateHeader",
    "WaitRequest",
    "decode_calibration_receipt",
    "decode_calibration_report",
    "decode_evaluation_receipt",
    "decode_evaluation_report",
    "decode_fetch_request",
    "decode_join_reply",
    "decode_join_request",
    "decode_model_part",
    "decode_receipt",
    "decode_task_status",
    "decode_update_part",
    "decode_wait_request",
    "encode_calibration_receipt",
    "encode_calibration_report",
    "encode_evaluation_receipt",
    "encode_evaluation_report",
    "encode_fetch_request",
    "encode_join_reply",
    "encode_join_request",
    "encode_model_data",
    "encode_model_header",
    "encode_receipt",
    "encode_task_status",
    "encode_update_data",
    "encode_update_header",
    "encode_wait_request",
]
