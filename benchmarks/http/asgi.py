"""The same applications as in ``apps``, for ASGI servers."""

from collections.abc import Awaitable, Callable
from typing import Any

from apps import HELLO, PAGE

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def _answer(send: Send, kind: bytes, body: bytes) -> None:
    fields = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def hello(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """13 bytes."""
    if scope["type"] == "http":
        await _answer(send, b"text/plain", HELLO)


async def page(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """64 KiB."""
    if scope["type"] == "http":
        await _answer(send, b"text/html", PAGE)


async def echo(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """What was sent."""
    if scope["type"] == "http":
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await _answer(send, b"application/octet-stream", body)
