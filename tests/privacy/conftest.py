"""Tools of an auditor: a proxy that decrypts traffic, canaries and their disguises, a silo full of them."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.settings import AgentSettings, load_agent_settings
from flamest.base.files import sha256_bytes
from flamest.runtime.clip_records import Clip

WIDTH, ROWS = 64, 60
KNOWN = ("canary-label-fall", "canary-label-run", "canary-label-walk")  # the run's: they come from the coordinator
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA = 0


@dataclass
class Passed:
    """The bytes of one connection, decrypted."""

    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)

    def messages(self) -> list[bytes]:
        """The gRPC messages that went up: HTTP/2's DATA frames, put together stream by stream."""
        bodies: dict[int, bytearray] = {}
        place = len(PREFACE)
        assert bytes(self.up[:place]) == PREFACE
        while place + 9 <= len(self.up):
            size, kind, flags = int.from_bytes(self.up[place : place + 3]), self.up[place + 3], self.up[place + 4]
            stream = int.from_bytes(self.up[place + 5 : place + 9]) & 0x7FFFFFFF
            frame = self.up[place + 9 : place + 9 + size]
            if kind == DATA:
                assert flags & 8 == 0  # no padding
                bodies.setdefault(stream, bytearray()).extend(frame)
            place += 9 + size
        made = []
        for body in bodies.values():
            start = 0
            while start < len(body):
                assert body[start] == 0  # not compressed
                size = int.from_bytes(body[start + 1 : start + 5])
                made.append(bytes(body[start + 5 : start + 5 + size]))
                start += 5 + size
        return made


class Tap:
    """Ends the silo's TLS with the server's certificate, and goes on to the coordinator with the silo's."""

    def __init__(self, federation, silo: str) -> None:
        files = federation.connection_settings(silo).files
        host, _, port = federation.address.rpartition(":")
        self._target = (host, int(port))
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(federation.folder / "server.pem", federation.folder / "server-key.pem")
        self._far = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._far.load_cert_chain(files.certificate, files.key)
        for context in (self._near, self._far):
            context.load_verify_locations(cafile=files.ca)
            context.verify_mode = ssl.CERT_REQUIRED
            context.set_alpn_protocols(["h2"])
        self.connections: list[Passed] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def up(self) -> bytes:
        return b"".join(bytes(each.up) for each in self.connections)

    @property
    def down(self) -> bytes:
        return b"".join(bytes(each.down) for each in self.connections)

    def __enter__(self) -> Tap:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._near)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        passed = Passed()
        self.connections.append(passed)
        far_in, far_out = await asyncio.open_connection(*self._target, ssl=self._far, server_hostname="127.0.0.1")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray) -> None:
            try:
                while data := await source.read(1 << 16):
                    kept += data
                    sink.write(data)
                    await sink.drain()
            except (ConnectionError, ssl.SSLError):
                pass
            finally:
                sink.transport.abort()
                source._transport.abort()

        await asyncio.gather(pump(near_in, far_out, passed.up), pump(far_in, near_out, passed.down))


def disguises(canary: bytes | str) -> list[bytes]:
    """A canary as it is, in UTF-16, hexadecimal and base64 (whatever precedes it)."""
    plain = (
        [canary] if isinstance(canary, bytes) else [canary.encode(form) for form in ("utf-8", "utf-16-le", "utf-16-be")]
    )
    made = []
    for each in plain:
        # A letter of base64 is six bits: those that lie whole inside do not depend on their surroundings.
        inner = [
            base64.b64encode(b"\0" * shift + each)[-(-8 * shift // 6) : 8 * (shift + len(each)) // 6]
            for shift in range(3)
        ]
        made += [each, each.hex().encode(), *(word for word in inner if len(word) >= 12)]
    return made


def inflated(data: bytes) -> bytes:
    """Everything in ``data`` that zlib or gzip can unpack."""
    made = []
    for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", data):
        opened = zlib.decompressobj(wbits=47)
        try:
            made.append(opened.decompress(data[start.start() :], 1 << 20))
        except zlib.error:
            continue
    return b"".join(made)


def canaries_in(data: bytes, canaries) -> list[str]:
    """Return the canaries in ``data``, in any disguise."""
    searched = data + inflated(data)
    return [repr(canary) for canary in canaries if any(form in searched for form in disguises(canary))]


@dataclass(frozen=True)
class Home:
    """A silo's folder whose store is full of canaries."""

    folder: Path
    canaries: tuple[bytes | str, ...]  # what must not leave: no label of the run among them

    def settings(self, federation, *, address: str | None = None, policy: str = "") -> AgentSettings:
        connection = federation.connection_settings("a", address=address)
        text = f"""
state = "state"
store = "canary-store.sqlite"
[coordinator]
address = {json.dumps(connection.address)}
ca = {json.dumps(str(connection.ca))}
certificate = {json.dumps(str(connection.certificate))}
key = {json.dumps(str(connection.key))}
[policy]
min_samples = 1
min_samples_override = true
{policy}
[work]
threads = 1
"""
        (self.folder / "agent.toml").write_text(text)
        return load_agent_settings(self.folder / "agent.toml")


@pytest.fixture
def home(tmp_path) -> Home:
    folder = tmp_path / "canary-folder"
    folder.mkdir()
    random, canaries = np.random.default_rng(7), list[bytes | str]()
    with FeatureStore.open(folder / "canary-store.sqlite") as store:
        rows = []
        for number in range(ROWS):
            label = KNOWN[number % 3] if number % 10 else "canary-label-that-the-run-does-not-know"
            name, caption, group = (
                f"canary-file-{number:02}.mp4",
                f"a canary {number:02} as a caption",
                f"canary-group-{number // 4:02}",
            )
            x = (random.normal(size=WIDTH) + number % 3).astype(np.float32)
            sha256 = sha256_bytes(f"content of {number}".encode())
            clip = Clip(Path(name), sha256, label, group)
            rows.append((f"canary-subfolder/{name}", FeatureRow(clip, x, 8, "fingerprint", "fp32", caption)))
            canaries += [name, caption, group, sha256, bytes.fromhex(sha256)]
            canaries += [x[:4].tobytes(), x[:8].astype(np.float16).tobytes()]
        store.add_rows(rows)
    canaries += ["canary-label-that-the-run-does-not-know", "canary-subfolder", "canary-folder", "canary-store"]
    return Home(folder, tuple(canaries))


@pytest.fixture
def canary_federation(make_federation):
    """A coordinator whose run has canaries for labels, with room for ten rounds of one silo."""
    federation = make_federation("a", inputs=WIDTH, hidden=[16], rounds=10, min_silos=1, epochs=1)
    text = federation.config.read_text()
    for known, canary in zip(("fall", "run", "walk"), KNOWN, strict=True):
        text = text.replace(f'"{known}"', f'"{canary}"')
    federation.config.write_text(text)
    return federation


@pytest.fixture
def tap_of():
    return Tap


@pytest.fixture
def find_canaries():
    return canaries_in
