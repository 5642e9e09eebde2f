"""ASGI layer around the page: checks a request before any handler sees it, and puts the headers on every answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...base.log import Log
from ...base.process import error_location
from .access import Access, Refused, check_host, check_post, check_site
from .answers import UNEXPECTED, error_answer, refusal_answer

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = Log("label")

METHODS = ("GET", "HEAD", "POST")
ENTER = "/enter"
PROOF = "/proof"  # the one address outside of the run's own path
PAGES = frozenset({"/", ENTER})  # which a person opens, or another page links to
HEADERS = {
    "content-security-policy": "default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Guard:
    """Wraps an ASGI application. ``on_known`` is called with the peer of a request that has a valid cookie."""

    def __init__(
        self, app: ASGIApp, access: Access, on_known: Callable[[tuple[str, int] | None], None] = lambda _: None
    ) -> None:
        self._app = app
        self._access = access
        self._on_known = on_known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import Headers

        if scope["type"] != "http":
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                names = {name for name, _ in own}
                message["headers"] = [*(pair for pair in message["headers"] if pair[0].lower() not in names), *own]
            await send(message)

        below = self._access.path_below(scope["path"])
        scope = {**scope, "path": below or scope["path"]}
        try:
            self._check(scope, Headers(scope=scope), own=below is not None)
        except Refused as refused:
            answer = refusal_answer(refused, as_json=scope["path"].startswith("/api/"))
            await answer(scope, receive, send_guarded)
            return
        try:
            await self._app(scope, receive, send_guarded)
        except Exception as error:  # its message may hold names: only its place is logged
            log.error("unexpected", where=error_location(error))
            if not started:
                await error_answer(UNEXPECTED)(scope, receive, send_guarded)

    def _check(self, scope: Scope, headers: Headers, *, own: bool) -> None:
        """Raise Refused for a request that is not answered. Puts the browser's cookie into the scope."""
        if scope["method"] not in METHODS:
            raise Refused(405, f"expected one of {', '.join(METHODS)}", fix="use the page itself", code="method")
        if len(headers.getlist("host")) != 1:
            raise Refused(400, "expected one Host", fix="use the page itself", code="host")
        check_host(headers["host"])
        path = scope["path"]
        check_site(headers, navigation=path in PAGES)
        scope["browser"] = self._access.browser("; ".join(headers.getlist("cookie"))) if own else ""
        if scope["browser"]:
            self._on_known(scope.get("client"))
        elif path != (ENTER if own else PROOF):
            raise Refused(
                403,
                "this browser may not see the page",
                fix="open the address that the terminal with flamest-agent label shows",
                code="no_cookie",
            )
        if scope["method"] == "POST":
            check_post(headers)
