"""Access to the page: one-time addresses, cookies, and the checks that every request passes before it is answered.

The page listens on loopback, where every user of the machine and every website that is open in a browser can reach it.
A request is answered when

- its ``Host`` names this machine: another name that leads here is a website's (DNS rebinding);
- its path begins with this run's own secret one, and it has the cookie that a one-time address gave to this browser.
  SameSite=Strict: no other site's request carries it. It is for that path alone: browsers send a cookie to every port
  of a host, and other ports of loopback belong to other users;
- the browser does not say that another site or another port asked (``Sec-Fetch-Site``);
- for POST also: ``Origin`` is this page, and the header ``X-Flamest`` is there, which no form can send.

docs/decisions/043-a-page-on-loopback.md says why. Fetch metadata: https://www.w3.org/TR/fetch-metadata/
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping

from ...base.errors import FlamestError
from ...base.token_bucket import TokenBucket

COOKIE = "flamest-label"  # and the port
OWN_HEADER = "x-flamest"
OWN_VALUE = "label"
HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
MAX_COOKIES = 8192  # characters of the header that are read
MAX_BROWSERS = 16  # that are in at a time; the one that came first has to leave
WRONG_TOKENS = 20  # at once, then one every WRONG_EVERY_S seconds: more are not even compared with old ones
WRONG_EVERY_S = 3.0
_HOST = re.compile(r"(?P<name>[a-z0-9.]+|\[[0-9a-f:]+\])(?::\d{1,5})?", re.ASCII)


class Refused(FlamestError):
    """A request that is not answered: ``status`` is HTTP's."""

    code = "refused"

    def __init__(self, status: int, message: str, *, fix: str, code: str = "refused") -> None:
        super().__init__(message, fix=fix, code=code)
        self.status = status


def page_gone() -> Refused:
    """Return the end of a request that no one waits for any more."""
    return Refused(499, "the page has gone", fix="ask again", code="gone")


class Access:
    """One-time addresses that are open, and the cookies that they were exchanged for. For the event loop's thread."""

    def __init__(self, port: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.cookie = f"{COOKIE}-{port}"
        self.base = f"/{secrets.token_urlsafe(24)}"  # every path of this run begins with it
        self.proof_key = secrets.token_hex(32)  # the page knows it, and this process
        self._clock = clock
        self._token = ""
        self._used: list[str] = []
        self._cookies: list[str] = []
        self._wrong = TokenBucket(WRONG_TOKENS, WRONG_EVERY_S)

    def path_below(self, path: str) -> str | None:
        """Return what follows this run's own path, with its slash; None for any other path."""
        start, rest = path[: len(self.base)], path[len(self.base) :]
        own = hmac.compare_digest(start.encode(errors="replace"), self.base.encode())
        return rest if own and rest.startswith("/") else None

    def proof(self, nonce: str) -> str:
        """Return the proof that this process is the one that the page came from: HMAC-SHA256, in hexadecimal."""
        return hmac.new(bytes.fromhex(self.proof_key), nonce.encode(errors="replace"), "sha256").hexdigest()

    def new_token(self) -> str:
        """Return the token of a new one-time address; the one before is no longer valid."""
        self._token = secrets.token_urlsafe(32)
        return self._token

    def exchange(self, token: str) -> str:
        """Exchange the token of a one-time address for a cookie's value. Raises Refused for any other text.

        The right token is never refused, however many wrong ones came: with 256 random bits a guess is hopeless, and
        another user of the machine must not be able to lock this one out.
        """
        given = token.encode(errors="replace")
        if self._token and hmac.compare_digest(given, self._token.encode()):
            self._used = [*self._used, self._token][-MAX_BROWSERS:]
            self._token = ""
            self._cookies = [*self._cookies, secrets.token_urlsafe(32)][-MAX_BROWSERS:]
            return self._cookies[-1]
        if not self._wrong.take(self._clock()):
            raise Refused(
                429,
                "too many wrong addresses",
                fix="wait a minute, then open the address in the terminal",
                code="token",
            )
        used = [old for old in self._used if hmac.compare_digest(given, old.encode())]
        raise Refused(
            403,
            "this address was used already" if used else "this address is not valid",
            fix="open the newest address that the terminal with flamest-agent label shows: each opens one browser",
            code="token",
        )

    def browser(self, cookies: str) -> str:
        """Return the cookie's value of a browser that is in, by the header ``Cookie``; otherwise an empty text.

        Other pages on this host can add cookies, of the same name too: each is looked at, and one that is not a cookie
        is passed over.
        """
        pairs = [pair.partition("=") for pair in cookies[:MAX_COOKIES].split(";")]
        given = [value.strip().encode(errors="replace") for name, _, value in pairs if name.strip() == self.cookie]
        found = [known for known in self._cookies for value in given if hmac.compare_digest(value, known.encode())]
        return found[0] if found else ""


def check_host(host: str) -> None:
    """Raise Refused unless the ``Host`` of a request is this machine by its own name, on any port (``ssh -L``)."""
    match = _HOST.fullmatch(host.lower())
    if match is None or match["name"] not in HOSTS:
        raise Refused(
            403, "this page answers to http://127.0.0.1 and http://localhost alone", fix="use one of them", code="host"
        )


def check_site(headers: Mapping[str, str], *, navigation: bool) -> None:
    """Raise Refused for a request that the browser says another site or port made, links to the page left out."""
    site = headers.get("sec-fetch-site", "none")
    allowed = site in ("same-origin", "none") or (navigation and headers.get("sec-fetch-mode") == "navigate")
    if not allowed:
        raise Refused(403, "another page asked for this", fix="use the page itself", code="site")


def check_post(headers: Mapping[str, str]) -> None:
    """Raise Refused for a POST that does not come from the page's own script."""
    if headers.get("origin") != f"http://{headers.get('host', '')}":
        raise Refused(403, "another page asked for this", fix="use the page itself", code="site")
    if headers.get(OWN_HEADER) != OWN_VALUE:
        raise Refused(
            403, "the page's own header is missing", fix=f"send {OWN_HEADER.title()}: {OWN_VALUE}", code="site"
        )
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected JSON", fix="send Content-Type: application/json", code="not_json")
