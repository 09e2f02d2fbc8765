"""A GiB up and a GiB down, with a client that takes its time, and little memory.

    python benchmarks/soak/large.py
    python benchmarks/soak/large.py --mib 128 --tls --option=--threads=4

Uploads, by Content-Length and in chunks; downloads of an iterable and of a file. The client
stops for a moment every 64 MiB, and reads or sends in between as fast as it can. The memory of
the worker (PSS) is looked at all the time.

A line for each; exit code 1 where the worker had more than 64 MiB beyond what it has at rest,
or where a byte is missing.

Owns: the transfers, the client, the verdict.
Leaves: the server to ``serving``.
"""

import argparse
import contextlib
import hashlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

if not __package__:
    # Run as a script: the repository's root is not among the places to import from.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.soak.serving import MIB, NAME, Serving, certificates

LIMIT = 64 * MIB
PIECE = 256 * 1024
# The client stops every so many bytes, for so many seconds.
STRIDE = 64 * MIB
PAUSE = 0.1
PATIENCE = 120.0
WAYS = ("upload", "upload-chunked", "iterable", "file")


class Watch:
    """The most memory that the workers have had; a context manager."""

    def __init__(self, server: Serving) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most = 0

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, self._server.memory())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()


def pieces(size: int) -> Iterator[bytes]:
    """Bytes that are not all alike, with pauses."""
    rest = size
    number = 0
    while rest:
        data = number.to_bytes(8, "big") * (PIECE // 8)
        data = data[:rest]
        rest -= len(data)
        number += 1
        yield data
        if rest and (size - rest) % STRIDE == 0:
            time.sleep(PAUSE)


def upload(sock: socket.socket, size: int, *, chunked: bool) -> None:
    """Send ``size`` bytes and compare what has come. Raises ``RuntimeError``, ``OSError``."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    sock.sendall(f"POST /upload HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode())
    found = hashlib.blake2b()
    for piece in pieces(size):
        found.update(piece)
        sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        sock.sendall(b"0\r\n\r\n")
    answer = b""
    wanted = f"{size} {found.hexdigest()}".encode()
    while not answer.endswith(wanted):
        piece = sock.recv(4096)
        if not piece or len(answer) > 4096:
            raise RuntimeError(f"the answer is {answer!r}")
        answer += piece


def download(sock: socket.socket, size: int, path: str) -> None:
    """Read ``size`` bytes. Raises ``RuntimeError``, ``OSError``."""
    sock.sendall(f"GET /{path}?size={size} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(PIECE)
    head, _, data = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"the answer is {head!r}")
    expected = {"iterable": ord("i"), "file": 0}[path]
    got = len(data)
    pause = STRIDE
    while got < size:
        data = sock.recv(PIECE)
        if not data or data.count(expected) != len(data):
            raise RuntimeError(f"ended, or wrong, behind {got} bytes")
        got += len(data)
        if got >= pause:
            pause += STRIDE
            time.sleep(PAUSE)


def transfer(
    server: Serving, way: str, size: int, context: ssl.SSLContext | None = None
) -> tuple[int, float]:
    """One of ``WAYS``; the bytes of memory beyond those at rest, and the seconds it took."""
    idle = server.memory()
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch(server))
        sock = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        stack.callback(sock.close)
        if context is not None:
            sock = stack.enter_context(context.wrap_socket(sock, server_hostname=NAME))
        if way.startswith("upload"):
            upload(sock, size, chunked=way.endswith("chunked"))
        else:
            download(sock, size, way)
    return watch.most - idle, time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--mib", type=int, default=1024, help="how much (1024)")
    add("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)} (all)")
    add("--tls", action="store_true")
    add("--option", action="append", default=[], help="one more of pulsar serve: --option=--x=1")
    options = parser.parse_args()
    worst = 0
    with contextlib.ExitStack() as stack:
        extra: list[str] = ["--workers=1", *options.option]
        context = None
        if options.tls:
            tls, context = stack.enter_context(certificates())
            extra += tls
        server = stack.enter_context(Serving(*extra))
        for way in options.ways.split(","):
            more, seconds = transfer(server, way, options.mib * MIB, context)
            print(f"{way}: {options.mib} MiB, {more / MIB:+.1f} MiB, {seconds:.1f} s", flush=True)
            worst = max(worst, more)
        if "Traceback" in server.log():
            print(server.log()[-3000:])
            return 1
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
