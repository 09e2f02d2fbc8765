"""The server of lines and its client: what is asked is answered, goodbye or not."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from examples.lineserver.manage import Lines, LineServerProtocol, server
from pulsar.apps.socket import SocketServer
from pulsar.errors import InvalidMessage
from pulsar.protocols import TcpServer
from tests.support.plain import connect, read, read_to_the_end
from tests.support.process import EXAMPLES, ServerProcess

HERE = EXAMPLES / "lineserver"
CAP = 64 * 1024  # bytes, of a line

Run = Callable[..., Any]


@pytest.fixture
def line_server(loop_kind: str) -> Iterator[ServerProcess]:
    options = ("--event-loop", loop_kind, "--bind", "127.0.0.1:0")
    with ServerProcess("manage.py", *options, cwd=HERE) as process:
        yield process


@pytest.fixture
def lines(
    line_server: ServerProcess, loop_kind: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lines]:
    """A client for blocking calls, on the same kind of loop as its server."""
    if loop_kind == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)  # cannot be imported
    with Lines(line_server.address) as lines:
        yield lines


def test_the_server_is_an_application() -> None:
    application = server("mine", "Says OK", load_config=False, bind=":0")
    assert isinstance(application, SocketServer)
    assert application.callable is LineServerProtocol
    assert (application.name, application.cfg.bind) == ("mine", (":0",))
    assert server(load_config=False).name == "lines"


# What is asked is answered


def test_calls_share_a_connection(lines: Lines) -> None:
    for text in (b"hello", b"", b"x" * 60_000, b"BYE"):
        assert lines(text) == b"OK " + text
    assert (lines.sessions, lines.pool.available) == (1, 1)


def test_a_line_that_cannot_be_sent_is_refused(lines: Lines) -> None:
    with pytest.raises(InvalidMessage, match="a line cannot contain LF"):
        lines(b"one\ntwo")
    assert lines(b"hello") == b"OK hello"


def test_lines_in_one_piece_and_byte_by_byte(line_server: ServerProcess) -> None:
    asked = b"".join(b"%d\r\n" % number for number in range(200))
    answer = b"".join(b"OK %d\r\n" % number for number in range(200))
    with connect(line_server.address) as sock:
        sock.sendall(asked)
        assert read(sock, len(answer)) == answer
        for byte in b"hello\r\n":
            sock.send(bytes([byte]))
        assert read(sock, 10) == b"OK hello\r\n"


def test_a_line_over_the_cap_costs_its_connection(line_server: ServerProcess) -> None:
    with connect(line_server.address) as sock:
        sock.sendall(b"one\r\n" + b"x" * (CAP + 10))
        assert read_to_the_end(sock) == b"OK one\r\n"
    assert "Traceback" not in line_server.stderr


# The goodbye


def test_a_stopping_server_says_goodbye_and_answers_what_comes(line_server: ServerProcess) -> None:
    with connect(line_server.address) as sock, connect(line_server.address) as other:
        sock.sendall(b"one\r\nhalf a li")
        assert read(sock, 8) == b"OK one\r\n"
        other.sendall(b"one\r\n")
        assert read(other, 8) == b"OK one\r\n"
        line_server.send(signal.SIGTERM)
        assert read(sock, 5) == read(other, 5) == b"BYE\r\n"
        # Whatever was on its way, and in however many pieces.
        for number in range(3):
            other.sendall(b"%d\r\n" % number)
            assert read(other, 6) == b"OK %d\r\n" % number
        sock.sendall(b"ne\r\n")
        assert read(sock, 14) == b"OK half a line"
        for each in (sock, other):
            each.shutdown(socket.SHUT_WR)
        assert (read_to_the_end(sock), read_to_the_end(other)) == (b"\r\n", b"")
    assert line_server.wait() == 0


def test_a_client_that_ignores_the_goodbye_is_let_go(line_server: ServerProcess) -> None:
    with connect(line_server.address) as sock:
        sock.sendall(b"one\r\n")
        assert read(sock, 8) == b"OK one\r\n"
        line_server.send(signal.SIGTERM)
        assert read_to_the_end(sock) == b"BYE\r\n"
    assert line_server.wait() == 0


def test_a_client_goes_to_the_next_server_and_loses_nothing(run: Run) -> None:
    """Servers follow each other on one socket, while a few callers ask without a pause."""
    rounds = 5

    async def main(sock: socket.socket) -> None:
        asked = answered = 0
        going = True

        async def ask(lines: Lines) -> None:
            nonlocal asked, answered
            while going:
                asked += 1
                text = b"%d" % asked
                assert await lines(text) == b"OK " + text
                answered += 1

        async with Lines(sock.getsockname(), pool_size=4) as lines:
            left = sock.dup()
            current = TcpServer(LineServerProtocol, sockets=[left])
            await current.start_serving()
            callers = [asyncio.ensure_future(ask(lines)) for _ in range(6)]
            for _ in range(rounds):
                before = answered
                while answered < before + 100:
                    await asyncio.sleep(0)
                taken = sock.dup()
                successor = TcpServer(LineServerProtocol, sockets=[taken])
                await successor.start_serving()
                await current.close(shared=[left])
                current, left = successor, taken
            going = False
            await asyncio.gather(*callers)
            # Everybody has gone to every server once, and to none by trial and error.
            assert lines.sessions <= 4 * (rounds + 1)
        await current.close()
        assert asked == answered

    with socket.create_server(("127.0.0.1", 0)) as sock:
        run(partial(main, sock)())
