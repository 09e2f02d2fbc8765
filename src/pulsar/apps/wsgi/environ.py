"""The environment of an application (PEP 3333).

Owns: what in it is constant for a server and for a connection; ``test_wsgi_environ``.
Leaves: what comes from a request's head to ``wire.http11``, its input to ``body``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ...version import __version__
from ...wire.http11 import Limits, MessageRefused, RequestHeads, RequestParser, render_request
from .body import NO_INPUT
from .files import FileWrapper

__all__ = ["SERVER_SOFTWARE", "connection_environ", "constant_environ", "test_wsgi_environ"]

SERVER_SOFTWARE = f"pulsar/{__version__}"


def constant_environ(
    *, multithread: bool, multiprocess: bool, root_path: str = ""
) -> dict[str, Any]:
    """What is the same for all requests of a server."""
    return {
        "wsgi.version": (1, 0),
        "wsgi.input": NO_INPUT,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": multiprocess,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
        "SCRIPT_NAME": root_path,
        "SERVER_SOFTWARE": SERVER_SOFTWARE,
        # A connection and a response put theirs here: a place that is there is filled for
        # less than one that has to be made.
        **connection_environ(None, None, secure=False),
        "wsgi.early_hints": None,
    }


def connection_environ(sockname: object, peername: object, *, secure: bool) -> dict[str, Any]:
    """What is the same for all requests of a connection.

    :param sockname: our end, as ``getsockname`` gives it
    :param peername: the other end
    """
    scheme = "https" if secure else "http"
    host, port = _host_and_port(sockname)
    environ = {
        "wsgi.url_scheme": scheme,
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": port or ("443" if secure else "80"),
    }
    environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = _host_and_port(peername)
    if secure:
        environ["HTTPS"] = "on"
    return environ


def _host_and_port(name: object) -> tuple[str, str]:
    match name:
        case [str(host), int(port), *_]:
            return host, str(port)
        case _:
            return "", ""  # a Unix socket


def test_wsgi_environ(
    path: str | None = None,
    method: str | None = None,
    headers: Iterable[tuple[str, str]] | Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    secure: bool = False,
    loop: Any = None,
    *,
    body: bytes = b"",
) -> dict[str, Any]:
    """An environment for testing an application without a server.

    :param path: with a query, where there is one; by default ``/``
    :param method: by default ``GET``
    :param headers: of the request
    :param extra: added to the environment
    :param secure: over TLS?
    :param loop: not needed any more
    :param body: of the request

    Raises ``ValueError`` for what could not be a request.
    """
    given = headers.items() if isinstance(headers, Mapping) else headers or ()
    fields = list(given)
    names = {name.lower() for name, _ in fields}
    if "host" not in names:
        fields.insert(0, ("Host", "127.0.0.1:8060"))
    if body and "content-length" not in names:
        fields.append(("Content-Length", str(len(body))))
    constants = constant_environ(multithread=False, multiprocess=False)
    parser = RequestParser(RequestHeads(Limits(), constants))
    try:
        parser.feed(render_request(method or "GET", path or "/", fields) + body)
    except MessageRefused as exc:
        raise ValueError(f"this is no request: {exc}") from exc
    request = parser.request
    if request is None or not parser.complete:
        raise ValueError("this is no complete request")
    environ = request.environ.copy()
    environ.update(connection_environ(("127.0.0.1", 8060), ("127.0.0.1", 49152), secure=secure))
    environ["wsgi.input"] = io.BytesIO(parser.read())
    environ["wsgi.early_hints"] = _ignore
    environ.update(extra or {})
    return environ


def _ignore(headers: object) -> None:
    """There is no client to give hints to."""


# pytest would collect it wherever it is imported.
test_wsgi_environ.__test__ = False  # type: ignore[attr-defined]
