"""What one HTTP request costs in Python, from ``data_received`` to ``write``, in microseconds.

A fake transport and ``timeit``: no socket, no loop, so differences of 2 % show. Beside
pulsar, a protocol that only feeds httptools and writes a canned answer. Run with
``python benchmarks/micro/http.py``; figures are the best of many repeats, in turn.
"""

from __future__ import annotations

import asyncio
import itertools
import platform
import sys
import timeit
from collections.abc import Callable, Iterable

import httptools

from pulsar.apps.wsgi import WSGIServer
from pulsar.apps.wsgi.response import HttpServerResponse
from pulsar.apps.wsgi.site import Site
from pulsar.protocols import Connection, TcpServer

NUMBER = 480  # few enough for a cache
ROUNDS = 200
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world\n"

PLAIN = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8060\r\nAccept: */*\r\n\r\n"
BROWSER = (
    b"GET /shop/item/%b?ref=home HTTP/1.1\r\n"
    b"Host: example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Referer: https://example.com/shop\r\n"
    b"Connection: keep-alive\r\n"
    b"Cookie: session=%b; theme=dark\r\n"
    b"Upgrade-Insecure-Requests: 1\r\n"
    b"Priority: u=0, i\r\n\r\n"
)
POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1:8060\r\nContent-Length: 1024\r\n\r\n" + b"x" * 1024


class Transport:
    def write(self, data: bytes) -> None:
        pass

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 8060) if name in {"sockname", "peername"} else None

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Canned(asyncio.Protocol):
    """httptools, and an answer that is always the same."""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(ANSWER)


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world\n"]


def canned() -> Callable[[bytes], None]:
    protocol = Canned()
    protocol.connection_made(Transport())
    return protocol.data_received


def pulsar(**settings: object) -> Callable[[bytes], None]:
    cfg = WSGIServer(application, load_config=False, **settings).cfg
    consumer = HttpServerResponse.bound(Site(application, cfg))
    server = TcpServer(consumer)
    server.protocol_connected = lambda protocol: None
    loop = asyncio.new_event_loop()
    connection = Connection(consumer, producer=server, loop=loop)
    connection.connection_made(Transport())
    return connection.data_received


def varied() -> Iterable[bytes]:
    """Heads that never come again: other targets, and every 64th time another cookie."""
    for number in itertools.count():
        yield BROWSER % (b"%d" % number, b"%032d" % (number // 64))


def new_clients() -> Iterable[bytes]:
    """Heads of which even the fields never come again."""
    for number in itertools.count():
        yield BROWSER % (b"%d" % number, b"%032d" % number)


def main() -> None:
    requests = {
        "hello": itertools.repeat(PLAIN),
        "browser": itertools.repeat(BROWSER % (b"1", b"1")),
        "browser, new targets": varied(),
        "browser, new cookies": new_clients(),
        "POST 1 KiB": itertools.repeat(POST),
        "16 hellos": itertools.repeat(PLAIN * 16),
    }
    servers = {
        "canned": canned(),
        "pulsar": pulsar(),
        "pulsar, access log": pulsar(access_log="/dev/null"),
    }
    chosen = sys.argv[1:] or list(requests)
    best = dict.fromkeys(itertools.product(chosen, servers), float("inf"))
    for _ in range(ROUNDS):
        for case, name in best:
            number = NUMBER // (16 if case.startswith("16") else 1)
            batch = list(itertools.islice(requests[case], number))
            seconds = timeit.timeit(
                "for request in batch: receive(request)",
                globals={"receive": servers[name], "batch": batch},
                number=1,
            )
            best[case, name] = min(best[case, name], seconds / number * 1e6)
    print(f"Python {platform.python_version()}, best of {ROUNDS} rounds of {NUMBER}")
    print(f"{'':24}" + "".join(f"{name:>20}" for name in servers))
    for case in chosen:
        print(f"{case:24}" + "".join(f"{best[case, name]:17.2f} us" for name in servers))


if __name__ == "__main__":
    main()
