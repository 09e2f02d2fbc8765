"""The echo server and its client, followed as the documentation tells it."""

import asyncio
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from examples.echo.manage import Echo, EchoProtocol, EchoServerProtocol, server
from pulsar.apps.socket import SocketServer
from pulsar.errors import InvalidMessage
from tests.support.plain import connect, read, read_to_the_end
from tests.support.process import (
    EXAMPLES,
    PATIENCE,
    ServerProcess,
    clean_environment,
    exclusive_port,
)

HERE = EXAMPLES / "echo"
CAP = 64 * 1024  # bytes, of a message
LOG_LINE = re.compile(r"\[.+\] \[\d+\] \[INFO\] .+")
STRICT = ("-W", "error", "-X", "dev")

Run = Callable[..., Any]
Start = Callable[..., ServerProcess]


@pytest.fixture
def start(loop_kind: str) -> Start:
    """Starts ``manage.py`` on each kind of loop."""
    return partial(ServerProcess, "manage.py", "--event-loop", loop_kind, cwd=HERE)


@pytest.fixture
def echo_server(start: Start) -> Iterator[ServerProcess]:
    with start("--bind", "127.0.0.1:0") as process:
        yield process


@pytest.fixture
def echo(
    echo_server: ServerProcess, loop_kind: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Echo]:
    """A client for blocking calls, on the same kind of loop as its server."""
    if loop_kind == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)  # cannot be imported
    with Echo(echo_server.address) as echo:
        yield echo


# To the letter


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
def test_the_documentation_can_be_followed(uvloop: bool) -> None:
    session = [
        "from manage import Echo",
        "echo = Echo(('localhost', 8060))",
        "print(echo(b'Hello!'))",
    ]
    if not uvloop:
        session.insert(0, "import sys; sys.modules['uvloop'] = None")
    options = [] if uvloop else ["--event-loop", "asyncio"]
    with (
        exclusive_port(8060, socket.SOCK_STREAM),
        ServerProcess("manage.py", *options, cwd=HERE) as process,
    ):
        assert process.addresses == ["127.0.0.1:8060"]
        shell = subprocess.run(
            [sys.executable, *STRICT, "-c", "\n".join(session)],
            cwd=HERE,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        # A busy machine makes asyncio's debug mode, which is on here, speak of slow steps.
        errors = [line for line in shell.stderr.splitlines() if not line.startswith("Executing <")]
        assert (shell.stdout, errors) == ("b'Hello!'\n", [])
        assert process.stop() == 0


def test_a_server_says_nothing_but_what_it_does_and_warns_of_nothing(loop_kind: str) -> None:
    options = ("--event-loop", loop_kind, "--bind", "127.0.0.1:0")
    with ServerProcess(*STRICT, "manage.py", *options, cwd=HERE) as process:
        with Echo(process.address) as echo:
            assert echo(b"Hello!") == b"Hello!"
        with connect(process.address) as sock:
            sock.sendall(b"half a mess")
        assert process.stop() == 0
        lines = process.stderr.splitlines()
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []
    assert [line.partition("[INFO] ")[2] for line in lines] == [
        "echo serves on {}:{}".format(*process.address),
        "SIGTERM: stopping gracefully",
        "echo has stopped",
    ]


def test_the_command_line_serves_the_protocol(loop_kind: str) -> None:
    command = ("-m", "pulsar", "serve", "manage:EchoServerProtocol", "--event-loop", loop_kind)
    with (
        ServerProcess(*command, "--bind", "127.0.0.1:0", cwd=HERE) as process,
        Echo(process.address) as echo,
    ):
        assert echo(b"Hello!") == b"Hello!"


def test_the_server_is_an_application() -> None:
    application = server("hello", "Says it again", load_config=False, bind=":0")
    assert isinstance(application, SocketServer)
    assert application.callable is EchoServerProtocol
    assert (application.name, application.cfg.bind) == ("hello", (":0",))
    assert server(load_config=False).name == "echo"


# Blocking calls


def test_calls_share_a_connection(echo: Echo) -> None:
    for message in (b"Hello!", b"", b"\0\r\n\r", b"Hello!"):
        assert echo(message) == message
    assert (echo.sessions, echo.pool.available, echo.pool.in_use) == (1, 1, 0)


def test_a_client_that_is_forgotten_leaves_nothing(echo_server: ServerProcess) -> None:
    assert Echo(echo_server.address)(b"Hello!") == b"Hello!"


def test_the_full_response_is_the_consumer(echo_server: ServerProcess) -> None:
    with Echo(echo_server.address, full_response=True) as echo:
        response = echo(b"Hello!")
        assert isinstance(response, EchoProtocol)
        assert response.request == b"Hello!"
        assert response.fired_event("post_request")


def test_a_message_of_the_largest_size_comes_back(echo: Echo) -> None:
    assert echo(b"x" * CAP) == b"x" * CAP


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"one\r\n\r\ntwo", "a message cannot contain the delimiter"),
        (b"x" * (CAP + 1), "a message of 65537 bytes is over the limit of 65536"),
    ],
)
def test_a_message_that_cannot_be_framed_is_refused(
    echo: Echo, message: bytes, reason: str
) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        echo(message)
    assert echo(b"Hello!") == b"Hello!"
    assert echo.pool.in_use == 0


def test_a_connection_that_the_server_has_closed_is_not_used_again(
    start: Start, loop_kind: str
) -> None:
    with (
        start("--bind", "127.0.0.1:0", "--keep-alive", "0.1") as process,
        Echo(process.address) as echo,
    ):

        async def acquire() -> Any:
            return await echo.pool.connect()

        for sessions in (1, 2):
            with echo.run(acquire()) as connection:
                pooled = connection.transport.get_extra_info("socket")
            assert (echo(b"Hello!"), echo.sessions) == (b"Hello!", sessions)
            # The loop of a blocking client does not run: only the descriptor knows.
            assert select.select([pooled.fileno()], [], [], PATIENCE)[0]


def test_a_server_may_be_restarted_between_calls(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, Echo(sock.getsockname()) as echo:
        for sessions in (1, 2):
            # One socket for all of them: nobody else can take the port meanwhile.
            with start("--bind", f"fd://{sock.fileno()}", pass_fds=[sock.fileno()]) as process:
                assert (echo(b"Hello!"), echo.sessions) == (b"Hello!", sessions)
                assert echo(b"again") == b"again"
                assert process.stop(signal.SIGQUIT) == 0


def test_without_a_server_the_error_names_the_address() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        echo = Echo(sock.getsockname())
        with echo, pytest.raises(ConnectionRefusedError, match=r"connect to 127\.0\.0\.1:\d+: "):
            echo(b"Hello!")


# Inside a running loop


def test_a_call_returns_an_awaitable(echo_server: ServerProcess, run: Run) -> None:
    async def main() -> None:
        async with Echo(echo_server.address) as echo:
            call = echo(b"Hello!")
            assert isinstance(call, asyncio.Task)
            assert await call == b"Hello!"

    run(main())


def test_calls_at_the_same_time_get_their_own_answers(echo_server: ServerProcess, run: Run) -> None:
    messages = [b"%d" % number * number for number in range(100)]

    async def main() -> None:
        async with Echo(echo_server.address, pool_size=5) as echo:
            assert await asyncio.gather(*map(echo, messages)) == messages
            assert echo.sessions == 5
            assert (echo.pool.available, echo.pool.in_use) == (5, 0)

    run(main())


def test_a_restarted_server_is_found_again(start: Start, run: Run) -> None:
    async def main(sock: socket.socket) -> None:
        async with Echo(sock.getsockname()) as echo:
            for _ in range(2):
                # It blocks the loop, which learns late that the connections are gone.
                with start("--bind", f"fd://{sock.fileno()}", pass_fds=[sock.fileno()]) as process:
                    assert await echo(b"Hello!") == b"Hello!"
                    assert process.stop(signal.SIGQUIT) == 0

    with socket.create_server(("127.0.0.1", 0)) as sock:
        run(main(sock))


# Plain sockets


def test_messages_in_one_piece_and_byte_by_byte(echo_server: ServerProcess) -> None:
    stream = b"".join(b"%d\r\n\r\n" % number for number in range(200))
    with connect(echo_server.address) as sock:
        sock.sendall(stream)
        assert read(sock, len(stream)) == stream
        for byte in stream[-50:]:
            sock.send(bytes([byte]))
        assert read(sock, 50) == stream[-50:]


def test_a_client_that_ends_in_the_middle_of_a_message_is_let_go(
    echo_server: ServerProcess,
) -> None:
    with connect(echo_server.address) as sock:
        sock.sendall(b"one\r\n\r\nhalf a mess")
        sock.shutdown(socket.SHUT_WR)
        assert read_to_the_end(sock) == b"one\r\n\r\n"


def test_a_half_closed_connection_is_answered_and_closed(echo_server: ServerProcess) -> None:
    with connect(echo_server.address) as sock:
        sock.sendall(b"one\r\n\r\ntwo\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_to_the_end(sock) == b"one\r\n\r\ntwo\r\n\r\n"


def test_a_message_over_the_cap_costs_its_connection(
    echo_server: ServerProcess, echo: Echo
) -> None:
    with connect(echo_server.address) as sock:
        sock.sendall(b"one\r\n\r\n" + b"x" * (CAP + 10))
        assert read_to_the_end(sock) == b"one\r\n\r\n"
    echo_server.wait_for("the peer sent a frame that is larger")
    assert "Traceback" not in echo_server.stderr
    assert echo(b"Hello!") == b"Hello!"
