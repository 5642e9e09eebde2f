"""Log of every gRPC message of a client process, both ways. Started by Python itself: the file is copied as
``sitecustomize.py`` into a folder of its own that is first on the process's PYTHONPATH.

It knows nothing of the program but that it imports grpc: the functions that make a channel are replaced, and the
channel's calls are given serialisers that write down the bytes as they go. One JSON object a line in the file that
the environment variable SAME_BYTES_WIRE names; where it is not set, nothing is done.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

CALLS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
Coder = Callable[[Any], Any]
_writing = threading.Lock()


class _WhenGrpcComes(importlib.abc.MetaPathFinder):
    """Patches grpc when the program imports it, which it may never do."""

    def __init__(self) -> None:
        self._asking = False  # the finders behind this one

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "grpc" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_patch(module: Any) -> None:
            load(module)
            for maker in ("secure_channel", "insecure_channel"):
                setattr(module, maker, functools.partial(_channel, getattr(module, maker)))

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


def _channel(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    channel = make(*arguments, **options)
    for kind in CALLS:
        setattr(channel, kind, functools.partial(_call, getattr(channel, kind)))
    return channel


def _call(
    start: Callable[..., Any],
    method: str,
    request_serializer: Coder | None = None,
    response_deserializer: Coder | None = None,
    **options: Any,
) -> Any:
    def sent(message: Any) -> Any:
        data = message if request_serializer is None else request_serializer(message)
        _note(method, "sent", data)
        return data

    def received(data: bytes) -> Any:
        _note(method, "received", data)
        return data if response_deserializer is None else response_deserializer(data)

    return _Started(method, start(method, sent, received, **options))


class _Started:
    """Multicallable of a channel that records every call when it ends."""

    def __init__(self, method: str, calls: Any) -> None:
        self._method, self._calls = method, calls

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        made = self._calls(*arguments, **options)
        return self._looked_at(made) if hasattr(made, "add_done_callback") else made

    def future(self, *arguments: Any, **options: Any) -> Any:
        return self._looked_at(self._calls.future(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calls, name)

    def _looked_at(self, made: Any) -> Any:
        made.add_done_callback(functools.partial(_note_end, self._method))
        return made


def _note(method: str, direction: str, data: bytes) -> None:
    _write({"method": method, "direction": direction, "message": bytes(data).hex()})


def _note_end(method: str, call: Any) -> None:
    """A call that was refused: its status, words, and metadata. From another thread: at any place in the log."""
    if call.code().name == "OK":
        return
    metadata = [list(map(str, pair)) for pair in call.trailing_metadata() or ()]
    record = {"status": call.code().name, "details": call.details(), "metadata": metadata}
    _write({"method": method, "direction": "refused", **record})


def _write(record: dict[str, Any]) -> None:
    line = json.dumps(record)
    with _writing, Path(os.environ["SAME_BYTES_WIRE"]).open("a") as file:
        file.write(line + "\n")


if os.environ.get("SAME_BYTES_WIRE"):
    sys.meta_path.insert(0, _WhenGrpcComes())
