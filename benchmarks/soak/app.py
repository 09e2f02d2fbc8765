"""The WSGI applications that are soaked: all answers can be foretold.

Owns: the applications.
Leaves: serving them to ``serving``, asking them to the programs.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.util import FileWrapper

HELLO = b"Hello, World!"
PIECE = 64 * 1024

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """``/`` says hello; the others take or give ``?size=BYTES``, see below."""
    match environ["PATH_INFO"]:
        case "/upload":
            return upload(environ, start_response)
        case "/iterable":
            return iterable(size_of(environ), start_response)
        case "/file":
            return file(environ, size_of(environ), start_response)
        case "/page":
            body = b"x" * size_of(environ)
        case _:
            body = HELLO
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def size_of(environ: Environ) -> int:
    """What the query says."""
    return int(dict(parse_qsl(environ["QUERY_STRING"]))["size"])


def upload(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Read it piece by piece; answer with its length and its hash."""
    size = 0
    found = hashlib.blake2b()
    while piece := environ["wsgi.input"].read(PIECE):
        size += len(piece)
        found.update(piece)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{size} {found.hexdigest()}".encode()]


def iterable(size: int, start_response: StartResponse) -> Iterator[bytes]:
    """Bytes of one kind, piece by piece."""
    start_response("200 OK", [("Content-Length", str(size))])
    piece = b"i" * PIECE
    for _ in range(size // PIECE):
        yield piece
    yield piece[: size % PIECE]


def file(environ: Environ, size: int, start_response: StartResponse) -> Iterable[bytes]:
    """A file without anything in it, by ``wsgi.file_wrapper``."""
    opened = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
    opened.truncate(size)
    start_response("200 OK", [("Content-Length", str(size))])
    wrapped: Iterable[bytes] = environ.get("wsgi.file_wrapper", FileWrapper)(opened, PIECE)
    return wrapped
