"""Settings of both ends of the wire: bounds, timeouts and the names of the calls.

One place, so that client and server cannot disagree. Bounds are for hostile or broken peers: an
honest message is far below each of them. Option names: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
"""

from __future__ import annotations

import os

CHUNK_BYTES = 1 << 20  # of a tensor payload in one message
MAX_MESSAGE_BYTES = 4 << 20  # one message to a silo, settings included
MAX_REQUEST_BYTES = 2 << 20  # one message to the coordinator: a piece of an update, an evaluation of every class
MAX_METADATA_BYTES = 8 << 10
WINDOW_BYTES = 256 << 10  # of a stream, on its way unread: 20 Mbit/s over 80 ms, from the first byte on
MAX_STREAMS_PER_CONNECTION = 8
MAX_CALLS = 1024  # under way, of all silos together; more are answered RESOURCE_EXHAUSTED
MAX_CALLS_PER_SILO = 16  # of these; a caller who is refused counts for none of them
MIN_CALLS_PER_SILO = 2  # that a silo has however many calls the others have
HANDSHAKE_MS = 10_000
CONNECTION_AGE_MS = 3_600_000  # an expired certificate lives on its connection no longer than this
CONNECTION_GRACE_MS = 600_000  # for the calls in flight when the age is reached
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
RECONNECT_MS = (200, 1_000)  # pauses between attempts to connect; the client adds its own, longer ones

CALL_S = 20.0  # deadline of a short call, and of the coordinator for its message and for its answer
MIN_BYTES_PER_S = 50_000  # a slower connection cannot take part
MAX_WAIT_S = 60.0  # a long poll is answered after this at the latest

SERVICE = "flamest.v1.Coordinator"
JOIN, WAIT_FOR_ROUND, FETCH_MODEL, SUBMIT_UPDATE = "Join", "WaitForRound", "FetchModel", "SubmitUpdate"
REPORT_EVALUATION, REPORT_CALIBRATION = "ReportEvaluation", "ReportCalibration"
CODE_KEY = "flamest-code"  # trailing metadata: the code of a refusal (DataError.code)

Options = list[tuple[str, int]]


def server_options(connections: int) -> Options:
    """Return the channel arguments of the coordinator's server, which closes further ones than ``connections``."""
    return [
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.experimental.tcp_read_chunk_size", WINDOW_BYTES // 16),
        ("grpc.experimental.tcp_max_read_chunk_size", WINDOW_BYTES // 4),  # 4 MiB otherwise, for each connection
        ("grpc.http2.bdp_probe", 0),  # it would let every stream have megabytes unread: 10 MB for each silo
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ]


def client_options() -> Options:
    """Return the channel arguments of a silo's connection."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS[0]),
        ("grpc.min_reconnect_backoff_ms", HANDSHAKE_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS[1]),
        ("grpc.enable_retries", 0),  # the client retries by itself, and counts what it sends
        ("grpc.use_local_subchannel_pool", 1),
    ]


def silence_grpc() -> None:
    """Keep gRPC's own log off stderr, unless GRPC_VERBOSITY asks for it; call before grpc is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def method_path(name: str) -> str:
    """Return the call's path on the wire: ``/flamest.v1.Coordinator/Join``."""
    return f"/{SERVICE}/{name}"


def transfer_s(payload_bytes: int) -> float:
    """Return the deadline in seconds for a payload of this size over the slowest connection that is served."""
    return 60.0 + payload_bytes / MIN_BYTES_PER_S
