"""The same applications as in ``apps``, for RSGI, granian's own interface."""

from typing import Any

from apps import HELLO, PAGE


def _fields(kind: str, body: bytes) -> list[tuple[str, str]]:
    return [("content-type", kind), ("content-length", str(len(body)))]


async def hello(scope: Any, protocol: Any) -> None:
    """13 bytes."""
    protocol.response_bytes(200, _fields("text/plain", HELLO), HELLO)


async def page(scope: Any, protocol: Any) -> None:
    """64 KiB."""
    protocol.response_bytes(200, _fields("text/html", PAGE), PAGE)


async def echo(scope: Any, protocol: Any) -> None:
    """What was sent."""
    body = await protocol()
    protocol.response_bytes(200, _fields("application/octet-stream", body), body)
