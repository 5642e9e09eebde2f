"""The page's server: listens on loopback, shows the address, opens the browser, and ends in order.

uvicorn runs in the main thread, on a socket that is bound here, without logs of its own: they would name videos.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.console import counted, say
from ...base.errors import LockedError, StorageError, UsageError
from ...base.process import Shutdown
from ..extraction.groups import DEFAULT_RULES, ClipRules
from .access import Access
from .book import LabelBook
from .browser import RedirectFile, find_browser, open_in_browser
from .connections import MAX_HEAD, Connections, protocol_class
from .guard import Guard
from .page_state import Known, PageState
from .routes import Page
from .suggestion_work import SuggestionRequest
from .suggestions import Suggestions

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"
KEEP_ALIVE_S = 60
END_WITHIN_S = 2


@dataclass(frozen=True)
class LabelRequest:
    """Options of ``flamest-agent label``."""

    folder: Path
    port: int = 0  # 0: a free one
    open_browser: bool = True
    rules: ClipRules = DEFAULT_RULES
    known: Known = field(default_factory=Known)
    suggest: SuggestionRequest | None = None


@dataclass(frozen=True)
class LabelResult:
    """Outcome of a session."""

    folder: Path
    labels: Path
    saves: int
    videos: int


def serve_page(request: LabelRequest) -> LabelResult:
    """Serve the page until SIGINT, SIGTERM or SIGHUP. Call it in the main thread.

    Raises LockedError for a port in use, StorageError for a folder that cannot be read, MissingExtra.
    """
    listener = listen(request.port)
    with contextlib.closing(listener):
        book = LabelBook(request.folder, request.rules)
        shutdown = _ended_by_signals()
        PageServer(request, book, listener).run(shutdown)
    return LabelResult(request.folder, book.table_path, book.saves, len(book.videos()))


class PageServer:
    """The server on a listening socket, and what the terminal shows meanwhile."""

    def __init__(self, request: LabelRequest, book: LabelBook, listener: socket.socket) -> None:
        self._request = request
        self._book = book
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._access = Access(self._port)
        self.ready = threading.Event()  # the address has been shown
        self._redirect: RedirectFile | None = None
        suggestions = Suggestions(request.suggest, _show) if request.suggest else None
        self._state = PageState(book, self._access, request.known, suggestions=suggestions, on_enter=self._entered)

    def run(self, shutdown: Shutdown) -> None:
        """Serve until ``shutdown`` is requested, in any thread."""
        server = _server(self._state, self._access)
        self._introduce()
        self.ready.set()
        try:
            asyncio.run(self._serve(server, shutdown))
        finally:
            self._remove_redirect()

    async def _serve(self, server: uvicorn.Server, shutdown: Shutdown) -> None:
        watching = asyncio.create_task(self._state.watch())
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        while not shutdown.requested and not serving.done():
            await asyncio.sleep(0.1)
        watching.cancel()
        server.should_exit = True
        self._state.close()
        await asyncio.to_thread(self._state.close_threads)
        await serving
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    def new_address(self) -> str:
        """Return a new one-time address; the one before is no longer valid."""
        return f"http://{HOST}:{self._port}{self._access.base}/enter?token={self._access.new_token()}"

    def _introduce(self) -> None:
        """Show the folder, the address, and how to end; open the browser."""
        browser = find_browser() if self._request.open_browser else None
        address = self.new_address()
        _show(f"labelling {self._book.folder}: {counted(len(self._book.videos()), 'video')}")
        _show(f"labels are saved in {self._book.table_path} as you go; nothing leaves this machine")
        for problem in self._book.problems()[:5]:
            _show(f"  warning: {f'labels.csv, line {problem.line}: ' if problem.line else ''}{problem.reason}")
        if browser is not None:
            self._redirect = RedirectFile(address)
            open_in_browser(browser, self._redirect)
            _show("the page opens in your browser; if it does not, open this address, which works once:")
        else:
            _show("open this address in a browser on this machine; it works once:")
        _show(f"  {address}")
        _show("to end: press Ctrl-C here")

    def _entered(self) -> None:
        """Show a new address after one was used."""
        self._remove_redirect()
        _show(f"opened. For another browser, once:\n  {self.new_address()}")

    def _remove_redirect(self) -> None:
        if self._redirect is not None:
            self._redirect.close()
            self._redirect = None


def _show(text: str) -> None:
    """Print lines for the person, at once, wherever the output goes; a terminal that is gone does not matter."""
    with contextlib.suppress(OSError):
        for line in text.split("\n"):
            say(line)
        sys.stdout.flush()


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback alone."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: expected 1 to 65535", fix="--port 8790")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise LockedError(
                f"port {port} is in use by another program, or by another flamest-agent label",
                fix="leave --port out: a free one is taken then",
                code="port_in_use",
            ) from error
        raise StorageError(
            f"cannot listen on {HOST}, port {port}: {error.strerror}",
            fix="leave --port out: a free one is taken then",
            code="port",
        ) from error
    return listener


def _ended_by_signals() -> Shutdown:
    """Return the flag of the session's end: Ctrl-C, SIGTERM, or a terminal that was closed."""
    shutdown = Shutdown.on_signals()
    signal.signal(signal.SIGHUP, lambda *_: shutdown.request())
    return shutdown


def _server(state: PageState, access: Access) -> uvicorn.Server:
    """Return uvicorn's server: quiet, and leaving signals to this process."""
    import uvicorn

    class QuietServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    connections = Connections()
    known: Callable[[Any], None] = connections.known
    config = uvicorn.Config(
        Guard(Page(state).application(), access, known),
        http=protocol_class(connections),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=END_WITHIN_S,
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    return QuietServer(config)
