"""Answers of the page's server: JSON, errors as JSON, refusals as one sentence; and JSON bodies, read with limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ...base.errors import DataError, FlamestError, LockedError, StorageError, UsageError
from .access import Refused, page_gone

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

T = TypeVar("T")
MAX_BODY = 1 << 20  # bytes of a request
BODY_WITHIN_S = 15.0
UNEXPECTED = FlamestError("something unexpected happened", fix="reload the page; if it stays, report it")
STATUS: tuple[tuple[type[FlamestError], int], ...] = (
    (UsageError, 400),
    (DataError, 409),
    (LockedError, 503),
    (StorageError, 500),
)


def json_answer(content: Any, *, status: int = 200) -> Response:
    """Return ``content``, anything that msgspec encodes, as a JSON answer."""
    from starlette.responses import Response

    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")


def error_answer(error: FlamestError) -> Response:
    """Return an error as ``{error: {code, message, fix}}`` with the status that fits."""
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    if error.code == "disk_full":
        status = 507
    if isinstance(error, Refused):
        status = error.status
    body = {"error": {"code": error.code, "message": error.message, "fix": error.fix}}
    answer = json_answer(body, status=status)
    if status in (408, 413):  # the rest of the body is not waited for
        answer.headers["connection"] = "close"
    return answer


def refusal_answer(refused: Refused, *, as_json: bool) -> Response:
    """Return a refusal: one sentence of text, or JSON for the page's script."""
    from starlette.responses import PlainTextResponse

    if as_json:
        return error_answer(refused)
    sentence = f"{refused.message[:1].upper()}{refused.message[1:]}: {refused.fix}.\n"
    return PlainTextResponse(sentence, status_code=refused.status)


async def read_body(request: Request, kind: type[T]) -> T:
    """Return the JSON body of a request as ``kind``. Raises Refused: too large, too slow, or not as expected."""
    import anyio
    from starlette.requests import ClientDisconnect

    body = bytearray()
    try:
        with anyio.fail_after(BODY_WITHIN_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise Refused(
                        413, f"more than {MAX_BODY} bytes", fix="save fewer changes at once", code="too_large"
                    )
    except ClientDisconnect as error:
        raise page_gone() from error
    except TimeoutError as error:
        raise Refused(408, "the request did not arrive in time", fix="try again", code="too_slow") from error
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(400, f"not as expected: {error}", fix="reload the page", code="page_request") from error
