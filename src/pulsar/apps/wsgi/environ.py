"""The environment of an application (PEP 3333), and what it reads its input from.

Owns: what in it is constant for a server and for a connection, ``EmptyInput``,
``new_input``, ``test_wsgi_environ``.
Leaves: what comes from a request's head to ``wire.http11``.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from ...version import __version__
from ...wire.http11 import Limits, MessageRefused, RequestHeads, RequestParser, render_request

__all__ = [
    "NO_INPUT",
    "SERVER_SOFTWARE",
    "EmptyInput",
    "FileWrapper",
    "connection_environ",
    "constant_environ",
    "new_input",
    "test_wsgi_environ",
]

SERVER_SOFTWARE = f"pulsar/{__version__}"

# A body up to so many bytes is kept in memory, a longer one in a temporary file.
_IN_MEMORY = 256 * 1024


class EmptyInput:
    """The input of a request without a body; one for all of them."""

    __slots__ = ()

    def read(self, size: int | None = -1) -> bytes:
        """Nothing."""
        return b""

    readline = read

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Nothing."""
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """There is nothing to close."""


NO_INPUT = EmptyInput()


def new_input() -> IO[bytes]:
    """Where a body is kept until it is complete."""
    return tempfile.SpooledTemporaryFile(_IN_MEMORY)


class FileWrapper:
    """``wsgi.file_wrapper``: an iterable of the blocks of a file.

    :param filelike: has ``read(size)``, and perhaps ``close()``
    :param blksize: of a block, in bytes
    """

    def __init__(self, filelike: Any, blksize: int = 64 * 1024) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close: Callable[[], None] = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        while block := self.filelike.read(self.blksize):
            yield block


def constant_environ(
    *, multithread: bool, multiprocess: bool, root_path: str = ""
) -> dict[str, Any]:
    """What is the same for all requests of a server."""
    return {
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": multiprocess,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
        "SCRIPT_NAME": root_path,
        "SERVER_SOFTWARE": SERVER_SOFTWARE,
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
    environ.update(extra or {})
    return environ


# pytest would collect it wherever it is imported.
test_wsgi_environ.__test__ = False  # type: ignore[attr-defined]
