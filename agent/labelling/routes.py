"""The page's HTTP interface: one function for each address. Everything here has passed the guard (guard.py).

Work on files runs in threads, so that a slow disk holds up no other request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, FlamestError
from .access import Refused
from .answers import UNEXPECTED, error_answer, json_answer, read_body, refusal_answer
from .file_part import FilePart, parse_range
from .page_state import PageState
from .records import AliasRequest, ChangesAnswer, ChangesRequest, SuggestionsRequest, TabRequest
from .vocabulary import alias_lines

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MEDIA_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
PAGE = "label.html"
ENTERED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>FLAMeST</title>
<link rel="icon" href="static/icon.svg"><meta http-equiv="refresh" content="0;url=./">
<p><a href="./">Open the page</a></p>
"""
MAX_QUERY = 2000  # characters


class Page:
    """Handlers of the addresses, over the state of one folder."""

    def __init__(self, state: PageState) -> None:
        self.state = state

    def application(self) -> Starlette:
        """Return the ASGI application without its guard."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        def route(path: str, handler: Any, *methods: str) -> Route:
            found = Route(path, handler, methods=list(methods))
            found.methods = set(methods)  # Starlette adds HEAD to GET: a HEAD must not use an address up
            return found

        application = Starlette(
            routes=[
                route("/", self.page, "GET"),
                route("/enter", self.enter, "GET"),
                route("/proof", self.proof, "GET"),
                route("/static/{name}", self.static, "GET"),
                route("/api/state", self.get_state, "GET"),
                route("/api/changes", self.changes, "POST"),
                route("/api/undo", self.undo, "POST"),
                route("/api/redo", self.redo, "POST"),
                route("/api/near", self.near, "GET"),
                route("/api/alias", self.alias, "POST"),
                route("/api/suggestions", self.suggestions, "POST"),
                route("/api/events", self.events, "GET"),
                route("/api/video/{id}", self.video, "GET", "HEAD"),
                route("/api/video/{id}/facts", self.facts, "GET"),
                route("/api/proxy/{id}", self.proxy, "GET"),
            ],
            exception_handlers={
                404: _not_found,
                405: _wrong_method,
                FlamestError: _known_error,
                Exception: _unknown_error,
            },
        )
        application.router.redirect_slashes = False
        return application

    async def enter(self, request: Request) -> Response:
        """Exchange a one-time address for a cookie, then lead to the page.

        By a refresh and not by a redirect: the browser came from a file, and would not send a SameSite=Strict cookie
        along a redirect that began on another site.
        """
        from starlette.responses import HTMLResponse

        answer = HTMLResponse(ENTERED)
        if not request.scope["browser"]:  # a browser that is in may load the address again
            access = self.state.access
            value = self.state.enter(request.query_params.get("token", "")[:MAX_QUERY])
            answer.set_cookie(access.cookie, value, httponly=True, samesite="strict", path=access.base)
        return answer

    async def page(self, request: Request) -> Response:
        return _file(PAGE, "text/html; charset=utf-8")

    async def proof(self, request: Request) -> Response:
        """Prove to a page that lost its connection that this is the run that it came from."""
        return json_answer({"proof": self.state.access.proof(request.query_params.get("nonce", "")[:MAX_QUERY])})

    async def static(self, request: Request) -> Response:
        """Answer with a script, style sheet or picture of the page, of those that are in its folder."""
        name = request.path_params["name"]
        if name not in await _in_thread(_static_names):
            raise Refused(404, "there is no such file", fix="reload the page", code="not_found")
        return _file(name, MEDIA_TYPES[Path(name).suffix])

    async def get_state(self, request: Request) -> Response:
        tab = request.query_params.get("tab", "")[:64]
        return json_answer(await _in_thread(self.state.record, tab))

    async def changes(self, request: Request) -> Response:
        body = await read_body(request, ChangesRequest)
        return self._saved(await _in_thread(self.state.book.save, body.tab, body.changes))

    async def undo(self, request: Request) -> Response:
        body = await read_body(request, TabRequest)
        return self._saved(await _in_thread(self.state.book.undo, body.tab))

    async def redo(self, request: Request) -> Response:
        body = await read_body(request, TabRequest)
        return self._saved(await _in_thread(self.state.book.redo, body.tab))

    def _saved(self, answer: ChangesAnswer) -> Response:
        self.state.events.publish("changed", {"revision": answer.revision})
        return json_answer(answer)

    async def near(self, request: Request) -> Response:
        label = request.query_params.get("label", "")[:MAX_QUERY]
        return json_answer({"near": await _in_thread(self.state.near, label)})

    async def alias(self, request: Request) -> Response:
        body = await read_body(request, AliasRequest)
        return json_answer({"lines": alias_lines(body.label, body.as_)})

    async def suggestions(self, request: Request) -> Response:
        body = await read_body(request, SuggestionsRequest)
        self.state.suggest(on=body.on)
        return json_answer({"suggesting": self.state.suggesting})

    async def events(self, request: Request) -> Response:
        from starlette.responses import StreamingResponse

        stream: AsyncIterator[bytes] = self.state.events.stream(request.scope["browser"])
        return StreamingResponse(stream, media_type="text/event-stream")

    async def video(self, request: Request) -> Any:
        """Answer with the file itself, whole or in part."""
        import os

        video = self.state.book.video(request.path_params["id"])
        if not video.playable:
            raise DataError(
                "browsers do not play this kind of file", fix="ask for /api/proxy of it instead", code="not_playable"
            )
        self.state.shown(video)
        file = await _in_thread(self.state.book.videos_of.open, video)
        try:
            size = os.fstat(file.fileno()).st_size
            part = parse_range(request.headers.get("range"), size)
        except BaseException:
            file.close()
            raise
        return FilePart(file, part, size, {"content-type": video.media_type})

    async def facts(self, request: Request) -> Response:
        video = self.state.book.video(request.path_params["id"])
        self.state.shown(video)
        return json_answer(await self.state.facts.of(video, request.is_disconnected))

    async def proxy(self, request: Request) -> Response:
        from starlette.responses import Response

        video = self.state.book.video(request.path_params["id"])
        start_s = _seconds(request, "start_s", 0.0, most=1e7)
        seconds = _seconds(request, "seconds", 10.0, most=60.0)
        self.state.shown(video)
        data = await self.state.proxies.piece(video, start_s, seconds, request.is_disconnected)
        return Response(data, media_type="video/webm")


def _static_names() -> set[str]:
    """Return the names of the files that the page loads."""
    folder = resources.files(__package__) / "page"
    try:
        return {file.name for file in folder.iterdir() if Path(file.name).suffix in MEDIA_TYPES}
    except OSError:
        return set()


def _file(name: str, media_type: str) -> Response:
    """Return a file of the page, which comes with the package."""
    from starlette.responses import Response

    try:
        data = (resources.files(__package__) / "page" / name).read_bytes()
    except OSError as error:
        raise Refused(
            404, "this file is not in the installation", fix="install flamest again", code="not_found"
        ) from error
    return Response(data, media_type=media_type)


def _seconds(request: Request, name: str, default: float, *, most: float) -> float:
    """Return a number of seconds from the query. Raises Refused for anything else."""
    text = request.query_params.get(name)
    try:
        value = default if text is None else float(text[:30])
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise Refused(400, f"{name}: expected seconds from 0 to {most:g}", fix="reload the page", code="page_request")
    return value


async def _in_thread(function: Any, *arguments: Any) -> Any:
    import anyio.to_thread

    return await anyio.to_thread.run_sync(function, *arguments)


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FlamestError)
    if isinstance(error, Refused):
        return refusal_answer(error, as_json=request.url.path.startswith("/api/"))
    return error_answer(error)


async def _unknown_error(request: Request, error: Exception) -> Response:
    """Answer for a bug; the guard logs it."""
    return error_answer(UNEXPECTED)


async def _not_found(request: Request, error: Exception) -> Response:
    refused = Refused(404, "there is no such page", fix="open the page itself: /", code="not_found")
    return refusal_answer(refused, as_json=request.url.path.startswith("/api/"))


async def _wrong_method(request: Request, error: Exception) -> Response:
    refused = Refused(405, "this address does not take this method", fix="use the page itself", code="method")
    return refusal_answer(refused, as_json=request.url.path.startswith("/api/"))
