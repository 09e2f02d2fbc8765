"""The WSGI applications that every server of the HTTP scenarios serves."""

from collections.abc import Callable, Iterable
from typing import Any

HELLO = b"Hello, World!"
PAGE = b"x" * 65536

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """13 bytes."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))])
    return [HELLO]


def page(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """64 KiB."""
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(PAGE)))])
    return [PAGE]


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """What was sent."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response(
        "200 OK",
        [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(body)))],
    )
    return [body]
