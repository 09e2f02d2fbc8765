"""The process tree under faults, in short; the long form is benchmarks/chaos/run.py.

Owns: one seeded run per transport, and the proof that the load notices what goes wrong.
Leaves: each fault by itself to its own tests.
"""

import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks.chaos.load import LINES, Load, Peer, RequestError, Tally
from tests.support.loops import run
from tests.support.process import PATIENCE, clean_environment

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks/chaos/run.py"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Part = Callable[[Streams, bytes], Awaitable[None]]


async def answer(streams: Streams, line: bytes) -> None:
    streams[1].write(b"OK " + line)


async def answer_and_say_goodbye(streams: Streams, line: bytes) -> None:
    streams[1].write(b"BYE\r\nOK " + line)


async def answer_another(streams: Streams, line: bytes) -> None:
    streams[1].write(b"OK another\r\n")


async def answer_twice(streams: Streams, line: bytes) -> None:
    streams[1].write(2 * (b"OK " + line))


async def close(streams: Streams, line: bytes) -> None:
    streams[1].close()


async def answer_and_close(streams: Streams, line: bytes) -> None:
    streams[1].write(b"OK " + line)
    streams[1].close()


async def reset(streams: Streams, line: bytes) -> None:
    sock = streams[1].get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    streams[1].close()


class Liar:
    """A server that answers each request as the next of its parts says, whoever asks."""

    def __init__(self, *parts: Part) -> None:
        self.parts = list(parts)
        self.connections = 0
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while line := await reader.readline():
                await self.parts.pop(0)((reader, writer), line)
        finally:
            self.open -= 1
            writer.close()


# What the client sees only later, of that which a part has done.
LATER: dict[Part, Callable[[Tally], int]] = {
    answer_and_close: lambda tally: tally.unannounced,
    answer_twice: lambda tally: tally.strays,
}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def tally_of(kind: str, *parts: Part, more: int = 0) -> tuple[dict[str, object], Liar]:
    """What a load of one client counts that makes a request for each part, and ``more``."""
    liar = Liar(*parts)

    async def main() -> dict[str, object]:
        server = await asyncio.start_server(liar.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        load = Load.parse(f"{kind}=1@127.0.0.1:{port}")
        [client] = load.clients()
        for part in parts:
            await client.request()
            if part in LATER:
                await until(lambda: LATER[part](load.tally))  # noqa: B023 - at once
        server.close()
        for _ in range(more):
            await client.request()
        client.end()
        await until(lambda: not liar.open)
        # From Python 3.12 on, for the connections as well.
        await server.wait_closed()
        return load.tally.counters()

    return run(main()), liar


def test_right_answers_on_one_connection() -> None:
    tally, liar = tally_of("kept", answer, answer, answer)
    assert (tally["sent"], tally["answered"], tally["failed"]) == (3, 3, 0)
    assert liar.connections == 1


def test_a_connection_for_each_request() -> None:
    tally, liar = tally_of("lines", answer, answer, answer)
    assert (tally["sent"], tally["answered"], tally["failed"]) == (3, 3, 0)
    assert liar.connections == 3


def test_after_a_goodbye_the_answer_is_taken_and_the_next_connection_made() -> None:
    tally, liar = tally_of("kept", answer, answer_and_say_goodbye, answer)
    assert (tally["answered"], tally["failed"], tally["goodbyes"]) == (3, 0, 1)
    assert (tally["unannounced"], liar.connections) == (0, 2)


def test_the_end_of_an_idle_connection_without_a_goodbye_is_counted() -> None:
    tally, liar = tally_of("kept", answer_and_close, answer)
    assert (tally["answered"], tally["failed"], tally["unannounced"]) == (2, 0, 1)
    assert liar.connections == 2


class Introduced(Load):
    """A load whose connections are what the server has said on them before anything was sent."""

    said: list[bytes]

    async def _connect(self) -> Peer:
        peer = Peer(LINES, self.tally)
        peer.transport = FakeTransport()  # type: ignore[assignment]
        said = self.said.pop(0)
        if said:
            peer.data_received(said)
            peer.connection_lost(None)
        return peer


class FakeTransport:
    """Enough of one for a connection that is only closed."""

    def close(self) -> None:
        """Nothing is open."""


def test_where_a_goodbye_comes_first_nothing_is_sent() -> None:
    load = Introduced.parse("lines=1@127.0.0.1:1")
    load.said = [b"BYE\r\n", b"BYE\r\n", b"", b"never"]
    assert not run(load.connect()).over
    assert load.said == [b"never"]
    assert (load.tally.goodbyes, load.tally.unannounced) == (2, 0)


def test_the_end_of_a_connection_before_anything_was_sent_is_a_failure() -> None:
    load = Introduced.parse("lines=1@127.0.0.1:1")
    load.said = [b"O"]
    with pytest.raises(RequestError) as caught:
        run(load.connect())
    assert caught.value.reason == "eof"


@pytest.mark.parametrize("kind", ["kept", "lines"])
@pytest.mark.parametrize(
    ("part", "reason"), [(close, "eof"), (reset, "reset"), (answer_another, "wrong")]
)
def test_a_failure_is_counted_once_and_not_tried_again(kind: str, part: Part, reason: str) -> None:
    tally, liar = tally_of(kind, answer, part, answer)
    assert (tally["sent"], tally["answered"], tally["failed"]) == (3, 2, 1)
    assert tally["reasons"] == {reason: 1}
    assert liar.parts == []


def test_an_answer_that_nobody_asked_for_is_counted() -> None:
    tally, _ = tally_of("kept", answer_twice, answer)
    assert (tally["answered"], tally["strays"]) == (2, 1)


def test_a_refused_connection_is_a_failure() -> None:
    tally, _ = tally_of("lines", answer, more=2)
    assert (tally["sent"], tally["answered"], tally["reasons"]) == (3, 1, {"refused": 2})


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "options",
    [
        ["--seed=659", "--actions=8", "--workers=3"],
        ["--seed=414", "--actions=4", "--workers=2", "--transport=udp"],
    ],
    ids=["tcp", "udp"],
)
def test_nothing_is_lost_stuck_or_left(options: list[str]) -> None:
    # Seeds with as many different actions as possible. How late an answer is, and how even a
    # burst is spread, tells something on a quiet machine only.
    only = "reload,recycle,scale,ttin-ttou,kill-worker,kill-forkserver,freeze,broken,stuck"
    command = [PROGRAM, "--only", only, "--calm=0.5", "--pace=100", "--late=1000", *options]
    ran = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert summary["broken"] == []
    assert summary["sent"] > 0
