"""The echo server and its client over UDP."""

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from examples.echoudp.manage import EchoUdp, EchoUdpServerProtocol, server
from pulsar.apps.socket import UdpSocketServer
from pulsar.protocols.datagram import MAX_DATAGRAM
from tests.support.process import (
    EXAMPLES,
    PATIENCE,
    ServerProcess,
    clean_environment,
    exclusive_port,
)

HERE = EXAMPLES / "echoudp"
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
) -> Iterator[EchoUdp]:
    """A client for blocking calls, on the same kind of loop as its server."""
    if loop_kind == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)  # cannot be imported
    with EchoUdp(echo_server.address, timeout=PATIENCE) as echo:
        yield echo


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A socket that takes datagrams and never answers."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
def test_the_documentation_can_be_followed(uvloop: bool) -> None:
    session = [
        "from manage import EchoUdp",
        "echo = EchoUdp(('127.0.0.1', 8060))",
        "print(echo(b'Hello!'))",
    ]
    if not uvloop:
        session.insert(0, "import sys; sys.modules['uvloop'] = None")
    options = [] if uvloop else ["--event-loop", "asyncio"]
    with (
        exclusive_port(8060, socket.SOCK_DGRAM),
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
        with EchoUdp(process.address) as echo:
            assert echo(b"Hello!") == b"Hello!"
        assert process.stop() == 0
        lines = process.stderr.splitlines()
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []
    assert [line.partition("[INFO] ")[2] for line in lines] == [
        "echoudp serves on {}:{}".format(*process.address),
        "SIGTERM: stopping gracefully",
        "echoudp has stopped",
    ]


@pytest.mark.parametrize("bind", ["udp://127.0.0.1:0", "127.0.0.1:0"])
def test_the_command_line_serves_the_protocol(loop_kind: str, bind: str) -> None:
    command = ("-m", "pulsar", "serve", "manage:EchoUdpServerProtocol", "--event-loop", loop_kind)
    with (
        ServerProcess(*command, "--bind", bind, cwd=HERE) as process,
        EchoUdp(process.address) as echo,
    ):
        assert echo(b"Hello!") == b"Hello!"


def test_the_server_is_an_application() -> None:
    application = server("hello", "Says it again", load_config=False, bind=":0")
    assert isinstance(application, UdpSocketServer)
    assert application.callable is EchoUdpServerProtocol
    assert (application.name, application.cfg.bind) == ("hello", (":0",))


# Blocking calls


@pytest.mark.parametrize("message", [b"Hello!", b"\0", b"x" * MAX_DATAGRAM], ids=len)
def test_a_datagram_comes_back(echo: EchoUdp, message: bytes) -> None:
    assert echo(message) == message
    assert echo(message) == message


def test_a_client_that_is_forgotten_leaves_nothing(echo_server: ServerProcess) -> None:
    assert EchoUdp(echo_server.address)(b"Hello!") == b"Hello!"


def test_a_message_that_no_datagram_can_carry_is_refused(echo: EchoUdp) -> None:
    with pytest.raises(ValueError, match="the largest has 65507"):
        echo(b"x" * (MAX_DATAGRAM + 1))
    assert echo(b"Hello!") == b"Hello!"


def test_a_server_may_be_restarted_between_calls(start: Start) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with EchoUdp(sock.getsockname(), timeout=PATIENCE) as echo:
            for _ in range(2):
                bind = f"fd://{sock.fileno()}"
                with start("--bind", bind, pass_fds=[sock.fileno()]) as process:
                    assert echo(b"Hello!") == b"Hello!"
                    assert process.stop() == 0


def test_a_closed_port_is_an_error_at_once(silent: socket.socket) -> None:
    silent.connect(("127.0.0.1", 9))  # from now on it takes datagrams from there only
    echo = EchoUdp(silent.getsockname(), timeout=PATIENCE)
    with echo, pytest.raises(ConnectionRefusedError):
        echo(b"Hello!")


def test_silence_ends_with_the_timeout(silent: socket.socket) -> None:
    with EchoUdp(silent.getsockname(), timeout=0.05) as echo, pytest.raises(TimeoutError):
        echo(b"Hello!")


# Inside a running loop


def test_calls_at_the_same_time_get_their_own_answers(echo_server: ServerProcess, run: Run) -> None:
    messages = [b"%d" % number * number for number in range(1, 51)]

    async def main() -> None:
        async with EchoUdp(echo_server.address, timeout=PATIENCE) as echo:
            call = echo(b"Hello!")
            assert isinstance(call, asyncio.Task)
            assert await call == b"Hello!"
            assert await asyncio.gather(*map(echo, messages)) == messages

    run(main())


def test_a_call_may_be_cancelled(silent: socket.socket, run: Run) -> None:
    async def main() -> None:
        async with EchoUdp(silent.getsockname()) as echo:
            call = echo(b"Hello!")
            reading = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(silent, reading.set_result, None)
            await reading
            asyncio.get_running_loop().remove_reader(silent)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    silent.setblocking(False)
    run(main())
