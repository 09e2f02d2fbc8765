"""The floor for HTTP in Python: uvloop feeds httptools, and the answer is ready made.

    python canned.py PORT APPLICATION [--unparsed] [--tls CERTIFICATE KEY]

Nothing is checked, nobody is called; ``echo`` answers as many bytes as were sent. With
``--unparsed`` there is no parser either: as many answers as empty lines have come.
"""

import argparse
import asyncio
import ssl

import httptools
import uvloop
from apps import HELLO, PAGE

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("application", choices=["hello", "page", "echo"])
parser.add_argument("--unparsed", action="store_true")
parser.add_argument("--tls", nargs=2)
OPTIONS = parser.parse_args()


def _answer(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
        b"Date: Sat, 21 Nov 2026 12:00:00 GMT\r\nServer: canned\r\n\r\n%b" % (len(body), body)
    )


READY = {"hello": _answer(HELLO), "page": _answer(PAGE), "echo": None}[OPTIONS.application]


class Unparsed(asyncio.Protocol):
    """One connection whose requests come in whole, and have no body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(READY * data.count(b"\r\n\r\n"))  # type: ignore[attr-defined, operator]


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
    context = None
    if OPTIONS.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*OPTIONS.tls)
    server = await asyncio.get_running_loop().create_server(
        Unparsed if OPTIONS.unparsed else Canned,
        "127.0.0.1",
        OPTIONS.port,
        backlog=2048,
        ssl=context,
    )
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
