"""The floor for HTTP in Python: uvloop feeds httptools, and the answer is ready made.

    python canned.py PORT APPLICATION

Nothing is checked, nobody is called; ``echo`` answers as many bytes as were sent.
"""

import asyncio
import sys

import httptools
import uvloop
from apps import HELLO, PAGE

NAME = sys.argv[2]


def _answer(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
        b"Date: Sat, 21 Nov 2026 12:00:00 GMT\r\nServer: canned\r\n\r\n%b" % (len(body), body)
    )


READY = {"hello": _answer(HELLO), "page": _answer(PAGE), "echo": None}[NAME]


class Canned(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.out: list[bytes] = []
        self.body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        out = self.out
        if out:
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))  # type: ignore[attr-defined]
            out.clear()

    def on_body(self, body: bytes) -> None:
        """httptools gives a part of a body."""
        self.body.append(body)

    def on_message_complete(self) -> None:
        """httptools says that a request is complete."""
        if READY is not None:
            self.out.append(READY)
        else:
            self.out.append(_answer(b"".join(self.body)))
        self.body.clear()


async def main() -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(
        Canned, "127.0.0.1", int(sys.argv[1]), backlog=2048
    )
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
