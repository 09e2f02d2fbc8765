"""What our layers add to a ``data_received``, in microseconds of Python time.

A fake transport and ``timeit``: no socket, no loop, so differences of 2 % show.
The base is a bare ``asyncio.Protocol`` that writes what it receives. Run with
``python benchmarks/micro/layers.py``; figures are the best of many repeats, in turn.
"""

from __future__ import annotations

import asyncio
import platform
import timeit

from pulsar.protocols import Connection, ProtocolConsumer, TcpServer

NUMBER = 20_000
ROUNDS = 25
MESSAGE = b"x" * 64


class Transport:
    def write(self, data: bytes) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Bare(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class LongLived(ProtocolConsumer):
    """Lives as long as its connection."""

    def data_received(self, data):
        self.write(data)


class PerMessage(ProtocolConsumer):
    """One for each message, with events and accounting."""

    def data_received(self, data):
        self.write(data)
        self.finished()


class Listened(ProtocolConsumer):
    """One for each message, with a callback on its post_request."""

    def connection_made(self, connection):
        self.bind_event("post_request", ignore)

    def data_received(self, data):
        self.write(data)
        self.finished()


def ignore(arg, exc=None):
    pass


def connection(consumer):
    server = TcpServer(consumer)
    made = Connection(consumer, producer=None, loop=None)
    made.producer = server
    server.protocol_connected = lambda protocol: None
    made.connection_made(Transport())
    return made


def bare():
    protocol = Bare()
    protocol.connection_made(Transport())
    return protocol


def main() -> None:
    cases = {
        "bare asyncio.Protocol": bare(),
        "consumer per connection": connection(LongLived),
        "consumer per message": connection(PerMessage),
        "consumer per message, post_request bound": connection(Listened),
    }
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for name, protocol in cases.items():
            seconds = timeit.timeit(
                "receive(message)",
                globals={"receive": protocol.data_received, "message": MESSAGE},
                number=NUMBER,
            )
            best[name] = min(best[name], seconds / NUMBER * 1e6)
    base = best["bare asyncio.Protocol"]
    print(f"Python {platform.python_version()}, best of {ROUNDS} rounds of {NUMBER}")
    for name, value in best.items():
        print(f"{name:45} {value:6.3f} us   added {value - base:6.3f} us")


if __name__ == "__main__":
    main()
