"""What the trees of the tests serve: workers that do what they are asked, a line at a time.

Owns: ``App``, over streams, and ``UdpApp``, over datagrams: a request is an expression, and
its value is the answer.
Leaves: asking to tree.py, which copies this file, as ``app.py``, to where it is served.
"""

import asyncio
import os
import random  # noqa: F401 - for expressions
import signal  # noqa: F401
import sys  # noqa: F401
import threading  # noqa: F401
import time
from typing import Any

from pulsar import DatagramProtocol, ProtocolConsumer
from pulsar.framing import LineFramer

# Each deployed file has its own.
VERSION = 1

# What "grow" has made.
kept: list[bytes] = []


def who() -> tuple[int, int, int]:
    """Which code serves, in which slot, in which process."""
    return VERSION, int(os.environ["PULSAR_WORKER_SLOT"]), os.getpid()


def spin_for_ever() -> None:
    while True:
        pass


def sleep_for_ever() -> None:
    time.sleep(1000)


def block(path: str, waiting: str = os.devnull) -> str:
    """Holds the loop up until there is such a file; makes the file ``waiting`` before."""
    with open(waiting, "w"):
        pass
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


def end(code: int) -> None:
    os._exit(code)


def grow(mib: int) -> int:
    kept.append(b"x" * (mib * 2**20))
    return len(kept)


async def until(path: str) -> str:
    """Answers when there is such a file."""
    while not os.path.exists(path):
        await asyncio.sleep(0.01)
    return path


def value(expression: bytes) -> Any:
    return eval(expression, globals())


class App(ProtocolConsumer):
    def connection_made(self, connection: Any) -> None:
        self.framer = LineFramer()

    def data_received(self, data: Any) -> Any:
        line, rest = self.framer.split(data)
        if line is not None:
            result = value(line)
            if asyncio.iscoroutine(result):
                self.create_task(self.answer_later(result))
            else:
                self.answer(result)
        return rest

    async def answer_later(self, result: Any) -> None:
        self.answer(await result)

    def answer(self, result: Any) -> None:
        self.write(self.framer.encode(ascii(result).encode()))
        self.finished()


class UdpApp(DatagramProtocol):
    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(ascii(value(data)).encode(), addr)
