"""Reasons why something could not be fetched, from the exceptions of urllib, huggingface_hub and the libraries below.

huggingface_hub lets through what its HTTP client raises, which is not always an OSError and differs between releases.
So an exception is known here by its status code, its errno, its class's name and its text, not by its type.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...base.environment import HF_HUB_OFFLINE
from ...base.errors import printable

LOGIN_PAGE = "what answered is a web page: a proxy, or a network that wants a login first"
_LONGEST = 300  # characters of a library's own words


@dataclass(frozen=True)
class NetworkProblem:
    """Cause of a failure, and what to try; ``fix`` is empty where there is nothing but another way to get the files."""

    reason: str
    fix: str = ""


OFFLINE = NetworkProblem("HF_HUB_OFFLINE forbids the network", "unset HF_HUB_OFFLINE")
_STATUS = {
    401: ("needs a login, or does not exist", "check the name; for a model that needs a login set HF_TOKEN"),
    403: ("is refused", "check that this network may fetch it; for a model that needs a login set HF_TOKEN"),
    404: ("is not there", "check the name and the revision"),
    407: ("needs a login at the proxy", "put user and password into https_proxy=http://USER:PASSWORD@HOST:PORT"),
    429: ("is refused for now: too many requests from this network", "wait some minutes, then run the command again"),
}  # fmt: skip
_NAMES = (
    # (pattern of a class's name or text, reason, fix)
    (r"TooManyRedirects|redirect error|infinite loop", "the redirects do not end", "check the proxy of this network"),
    (r"FileMetadataError|X-Repo-Commit|JSONDecodeError|Expecting value", LOGIN_PAGE,
     "log in to the network with a browser, or set https_proxy, then run the command again"),
    (r"[Xx]et", "the hub's storage (Xet) cannot be reached",
     "set HF_HUB_DISABLE_XET=1, so that the files come over HTTPS alone, and run the command again"),
    (r"SSLEOFError|SSLZeroReturn|EOF occurred|BAD_RECORD|DECRYPTION_FAILED", "the encrypted connection broke off",
     "run the command again"),
    (r"CERTIFICATE_VERIFY_FAILED|SSL", "the server's certificate cannot be verified",
     "name your organisation's authority: SSL_CERT_FILE=FILE.pem (REQUESTS_CA_BUNDLE for older libraries)"),
    (r"ProxyError|proxy", "the proxy does not answer as one", "check https_proxy and no_proxy"),
    (r"RemoteProtocolError|IncompleteRead|ConnectionReset|RemoteDisconnected|peer closed|Consistency check|Broken pipe",
     "the connection ended before the file did", "run the command again"),
    (r"[Tt]ime(d )?out", "nothing came for too long", "run the command again; HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer"),
    (r"gaierror|[Nn]ame or service|name resolution|nodename", "the name of the server is not known here: no network",
     "check the network, or set https_proxy"),
    (r"Connect|[Rr]efused|unreachable|No route to host|Network is down|Host is down", "the server cannot be reached",
     "check the network, or set https_proxy"),
)  # fmt: skip


def network_problem(error: BaseException) -> NetworkProblem:
    """Return what an exception of a download means."""
    chain = list(_chain(error))
    words = " ".join(f"{type(each).__name__}: {each}" for each in chain)
    if "OfflineModeIsEnabled" in words:
        return OFFLINE
    status = next((code for code in map(_status, chain) if code), 0)
    if status in _STATUS:
        reason, fix = _STATUS[status]
        return NetworkProblem(f"it {reason} (HTTP status {status})", fix)
    if 500 <= status < 600:
        return NetworkProblem(f"the server has a fault (HTTP status {status})", "run the command again later")
    for pattern, reason, fix in _NAMES:
        if re.search(pattern, words):
            return NetworkProblem(reason, fix)
    text = next((str(each).strip() for each in chain if str(each).strip()), type(error).__name__)
    return NetworkProblem(printable(text.splitlines()[0])[:_LONGEST])


def is_offline() -> bool:
    """True where HF_HUB_OFFLINE forbids the network; huggingface_hub reads the same values."""
    return HF_HUB_OFFLINE.value().upper() in ("1", "ON", "YES", "TRUE")


def is_disk_full(error: BaseException) -> bool:
    """Return True where the disk or a quota, not the network, ended a download."""
    return any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and those that it came from, each once."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        reason = getattr(found, "reason", None)  # urllib's URLError wraps the socket's error
        found = found.__cause__ or (reason if isinstance(reason, BaseException) else None) or found.__context__


def _status(error: BaseException) -> int:
    """Return an exception's HTTP status; 0 where it has none, or one that is no failure."""
    code = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return code if isinstance(code, int) and code >= 400 else 0
