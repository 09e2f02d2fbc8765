"""Clients where no loop runs: calls that block, on a loop of the client's own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings
import weakref
from functools import cache
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import pytest

from examples.echo.manage import Echo, EchoServerProtocol
from examples.echoudp.manage import EchoUdp, EchoUdpServerProtocol
from pulsar.apps.socket import SocketServer, UdpSocketServer
from pulsar.clients import AbstractClient, blocking, task
from pulsar.errors import ConnectionClosed, ConnectTimeout, PoolClosed
from pulsar.tls import client_context
from tests.support import loops
from tests.support.certs import Certificates, certs
from tests.support.process import clean_environment
from tests.support.serving import PATIENCE, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["certs"]

ROOT = Path(__file__).parents[2]

END = b"\r\n\r\n"


@pytest.fixture(autouse=True)
def own_loop(loop_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients make themselves loops of each kind in turn."""
    monkeypatch.setattr(blocking, "new_event_loop", loops.KINDS[loop_kind])


def serve(callable: Any = EchoServerProtocol, **settings: Any) -> Any:
    """An echo server in a thread, or a server of ``callable``."""
    return serving(SocketServer(callable, False, bind="127.0.0.1:0", **settings))


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """The address of an echo server."""
    with serve() as server:
        yield server.address


class EchoOverTls(Echo):
    """An echo client with TLS."""

    tls: Any = True

    def connect(self) -> Any:
        return self.create_connection(self.address, ssl=self.tls, timeout=0.2)


# -- calls


def test_a_call_gives_the_value(address: Any) -> None:
    echo = Echo(address)
    assert echo(b"Hello!") == b"Hello!"
    assert echo(b"again") == b"again"
    assert echo.sessions == 1
    echo.close()


def test_the_same_call_gives_an_awaitable_in_a_loop(address: Any, loop_kind: str) -> None:
    async def main() -> None:
        async with Echo(address) as echo:
            call = echo(b"Hello!")
            assert isinstance(call, asyncio.Task)
            assert await call == b"Hello!"

    loops.run(main(), loop=loop_kind)


def test_what_a_call_raises_reaches_the_caller(address: Any) -> None:
    class Failing(Echo):
        @task
        async def fail(self) -> None:
            raise LookupError("mine")

    with Failing(address) as echo:
        with pytest.raises(LookupError, match="mine"):
            echo.fail()
        assert echo(b"later") == b"later"


def test_the_main_thread_s_loop_is_not_touched(address: Any) -> None:
    # asyncio.get_event_loop() makes one where there is none, and warns.
    asyncio.set_event_loop(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Echo(address) as echo:
            assert echo(b"a") == b"a"
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_loop_that_is_given_is_used_and_left_open(address: Any, loop_kind: str) -> None:
    loop = loops.KINDS[loop_kind]()
    try:
        echo = Echo(address, loop=loop)
        assert echo._loop is loop
        assert echo(b"a") == b"a"
        echo.close()
        assert not loop.is_closed()
    finally:
        loop.close()


def test_a_datagram_client() -> None:
    with (
        serving(UdpSocketServer(EchoUdpServerProtocol, False, bind="127.0.0.1:0")) as server,
        EchoUdp(server.address) as echo,
    ):
        assert echo(b"Hello!") == b"Hello!"
        assert echo(b"again") == b"again"


# -- the end of a client


def test_close_ends_everything(address: Any) -> None:
    echo = Echo(address)
    lost: list[Any] = []
    echo.bind_event("connection_lost", lambda arg, exc=None: lost.append(exc))
    echo(b"a")
    own = echo._loop
    assert echo.close() is None
    assert lost == [None]
    assert own.is_closed()
    with pytest.raises(PoolClosed, match="hands out no connections any more"):
        echo(b"b")
    echo.close()


def test_a_client_that_was_never_used_can_be_closed(address: Any) -> None:
    Echo(address).close()
    with Echo(address):
        pass
    echo = Echo(address)
    own = echo._loop
    echo.close()
    assert own.is_closed()


def test_with_closes_also_when_the_block_raises(address: Any) -> None:
    with pytest.raises(LookupError), Echo(address) as echo:
        echo(b"a")
        own = echo._loop
        raise LookupError
    assert own.is_closed()
    assert echo.pool.closed


def test_a_client_that_is_forgotten_closes_its_loop(address: Any) -> None:
    echo = Echo(address)
    echo(b"a")
    own, gone = echo._loop, weakref.ref(echo)
    del echo
    gc.collect()
    assert gone() is None
    assert own.is_closed()


def test_a_client_that_is_forgotten_inside_another_loop(address: Any, loop_kind: str) -> None:
    clients = [Echo(address)]
    clients[0](b"a")
    own = clients[0]._loop

    async def main() -> None:
        clients.clear()
        gc.collect()

    loops.run(main(), loop=loop_kind)
    assert own.is_closed()


# -- one client, one loop


def test_a_client_of_blocking_calls_is_refused_inside_a_loop(address: Any, loop_kind: str) -> None:
    with Echo(address) as echo:
        assert echo(b"a") == b"a"

        async def main() -> None:
            with pytest.raises(RuntimeError, match="Echo belongs to another event loop: make one"):
                echo(b"b")

        loops.run(main(), loop=loop_kind)
        assert echo(b"c") == b"c"


def test_two_threads_in_turn(address: Any) -> None:
    with Echo(address) as echo:
        answers = [echo(b"first")]
        thread = threading.Thread(target=lambda: answers.append(echo(b"second")))
        thread.start()
        thread.join()
        answers.append(echo(b"third"))
        assert answers == [b"first", b"second", b"third"]
        assert echo.sessions == 1


def test_two_threads_at_once() -> None:
    asked, go_on = threading.Event(), threading.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            message = await reader.readuntil(END)
            asked.set()
            await asyncio.to_thread(go_on.wait, PATIENCE)
            writer.write(message)
        await reader.read()
        writer.close()

    answers: list[bytes] = []
    with serve(slow) as server, Echo(server.address) as echo:
        thread = threading.Thread(target=lambda: answers.append(echo(b"first")))
        thread.start()
        try:
            assert asked.wait(PATIENCE)
            with pytest.raises(RuntimeError, match="the client's event loop runs in another"):
                echo(b"second")
        finally:
            go_on.set()
            thread.join()
        assert answers == [b"first"]
        assert echo(b"third") == b"third"


def test_a_client_for_each_thread(address: Any) -> None:
    answers: list[bytes] = []

    def work(number: int) -> None:
        with Echo(address) as echo:
            answers.extend(echo(b"%d" % number) for _ in range(5))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(b"%d" % number for number in range(4) for _ in range(5))


# -- when something goes wrong, the client is as good as before


def test_nobody_listens(address: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with Echo(("localhost", port)) as echo:
            with pytest.raises(ConnectionRefusedError, match=f"cannot connect to localhost:{port}"):
                echo(b"a")
            echo.address = address
            assert echo(b"later") == b"later"


def test_a_host_that_nobody_knows(address: Any) -> None:
    with Echo("no-such-host.invalid:8060") as echo:
        with pytest.raises(socket.gaierror, match=r"cannot connect to no-such-host\.invalid:8060"):
            echo(b"a")
        echo.address = address
        assert echo(b"later") == b"later"


def test_a_tls_server_that_does_not_answer(address: Any) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        EchoOverTls(server.getsockname()) as echo,
    ):
        with pytest.raises(ConnectTimeout, match=r"no connection to 127\.0\.0\.1:\d+ within"):
            echo(b"a")
        echo.tls = None
        echo.address = address
        assert echo(b"later") == b"later"


def test_tls(certs: Certificates) -> None:
    files = {"cert_file": str(certs.server_cert), "key_file": str(certs.server_key)}
    with serve(**files) as server, EchoOverTls(server.address) as echo:
        with pytest.raises(ssl.SSLCertVerificationError):
            echo(b"a")
        echo.tls = client_context(certs.ca)
        assert echo(b"b") == b"b"


def test_a_unix_socket(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/echo.sock"
    with (
        serving(SocketServer(EchoServerProtocol, False, bind=path)),
        Echo(path) as echo,
    ):
        assert echo(b"a") == b"a"


def test_a_server_that_closes_in_mid_answer() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = await reader.readuntil(END)
        writer.write(b"ha" if message.startswith(b"half") else message)
        writer.close()

    with serve(half) as server, Echo(server.address) as echo:
        host, port = server.address
        with pytest.raises(ConnectionClosed, match=f"the server {host}:{port} closed"):
            echo(b"half")
        assert echo(b"whole") == b"whole"


def test_a_connection_that_died_between_two_calls_is_replaced() -> None:
    closed = threading.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readuntil(END))
        writer.close()
        await writer.wait_closed()
        closed.set()

    with serve(once) as server, Echo(server.address) as echo:
        for session in range(1, 4):
            assert echo(b"a") == b"a"
            assert echo.sessions == session
            # The client's loop does not run meanwhile: it has noticed nothing.
            assert closed.wait(PATIENCE)
            closed.clear()


def test_what_arrives_between_two_calls_is_no_answer() -> None:
    pushed = threading.Event()

    async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readuntil(END))
        await writer.drain()
        writer.write(b"by the way" + END)
        await writer.drain()
        pushed.set()
        await reader.read()
        writer.close()

    with serve(talkative) as server, Echo(server.address) as echo:
        for message in (b"a", b"b", b"c"):
            assert echo(message) == message
            assert pushed.wait(PATIENCE)
            pushed.clear()


def test_a_pool_of_one_is_free_again_after_an_error(address: Any) -> None:
    class Interrupted(Echo):
        @task
        async def fail(self) -> None:
            async with self.pool.connect():
                raise KeyError

    with Interrupted(address, pool_size=1) as echo:
        for _ in range(3):
            with pytest.raises(KeyError):
                echo.fail()
        assert echo(b"a") == b"a"
        assert repr(echo.pool) == "<Pool open, 0 in use, 1 available of 1, 0 waiting>"


def test_an_interruption_waits_for_what_the_call_has_to_clean_up(loop_kind: str) -> None:
    class Careful(AbstractClient):
        cleaned = False

        @task
        async def call(self) -> None:
            try:
                # What Ctrl-C does: the exception comes out of the running loop.
                asyncio.get_running_loop().call_soon(interrupt)
                await asyncio.sleep(PATIENCE)
            finally:
                await asyncio.sleep(0)
                self.cleaned = True

    def interrupt() -> None:
        raise KeyboardInterrupt

    with Careful() as client:
        with pytest.raises(KeyboardInterrupt):
            client.call()
        assert client.cleaned


# -- whole programs


def program(python: str, text: str, *arguments: object) -> subprocess.Popen[str]:
    """Run ``text`` with every warning an error."""
    path = os.pathsep.join(str(ROOT / part) for part in ("src", "examples/echo"))
    return subprocess.Popen(
        [python, "-W", "error", "-c", text, *map(str, arguments)],
        env={**clean_environment(), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    """What the program has printed; it has neither failed nor complained."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the program does not end:\n{out}\n{err}") from None
    assert err == ""
    assert process.returncode == 0
    return out


INTERRUPTED = """
import asyncio, sys
from pulsar.clients import blocking
from manage import Echo

if sys.argv[3] == "asyncio":
    blocking.new_event_loop = asyncio.new_event_loop
echo = Echo((sys.argv[1], int(sys.argv[2])), pool_size=1)
print(echo(b"first").decode(), flush=True)
try:
    echo(b"wait")
except KeyboardInterrupt:
    print("interrupted", echo.pool)
print(echo(b"last").decode())
"""


def test_ctrl_c_in_a_call_leaves_a_client_that_works(loop_kind: str) -> None:
    asked = threading.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while message := await reader.readuntil(END):
            if message.startswith(b"wait"):
                asked.set()
                break
            writer.write(message)
        await reader.read()
        writer.close()

    with serve(slow) as server:
        process = program(sys.executable, INTERRUPTED, *server.address, loop_kind)
        assert asked.wait(PATIENCE)
        process.send_signal(signal.SIGINT)
        assert output(process).splitlines() == [
            "first",
            "interrupted <Pool open, 0 in use, 0 available of 1, 0 waiting>",
            "last",
        ]


# A client in every state in which a program may end.
TOUR = """
import asyncio, gc, sys
from manage import Echo

address = sys.argv[1], int(sys.argv[2])
echo = Echo(address)
assert echo(b"a") == echo(b"a") == b"a"
echo.close()
with Echo(address) as echo:
    assert echo(b"b") == b"b"

async def main():
    async with Echo(address) as echo:
        assert await echo(b"c") == b"c"
    try:
        left_open(b"d")
    except RuntimeError as exc:
        print(exc)
    global forgotten
    del forgotten
    gc.collect()

forgotten = Echo(address)
forgotten(b"e")
left_open = Echo(address)
left_open(b"f")
made_outside = Echo(address)
asyncio.run(main())

async def inside():
    assert await made_outside(b"g") == b"g"
    await made_outside.close()

asyncio.run(inside())
assert left_open(b"h") == b"h"
print("fine")
"""


@cache
def interpreter(version: str) -> str | None:
    """A CPython of ``version`` on this machine; None: there is none."""
    name = f"python{version}"
    home = Path.home()
    found = [
        which(name),
        *home.glob(f".pyenv/versions/{version}.*/bin/{name}"),
        *home.glob(f".local/share/uv/python/cpython-{version}.*/bin/{name}"),
        *Path("/opt").glob(f"python/{version}*/bin/{name}"),
    ]
    # What pulsar needs must be there, too: a bare interpreter proves nothing.
    probe = f"import sys, msgspec; assert '%d.%d' % sys.version_info[:2] == '{version}'"
    for python in filter(None, found):
        # A shim on the PATH may have nothing behind it.
        if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0:
            return str(python)
    return None


@pytest.mark.parametrize("loop_kind", ["asyncio"])  # the programs choose theirs
@pytest.mark.parametrize("version", ["this", "3.11", "3.12", "3.13", "3.14"])
def test_no_python_complains(version: str, loop_kind: str, address: Any) -> None:
    python = sys.executable if version == "this" else interpreter(version)
    if python is None:
        pytest.skip(f"there is no CPython {version} on this machine")
    lines = output(program(python, TOUR, *address)).splitlines()
    refusal, last = lines
    assert refusal.startswith("Echo belongs to another event loop: make one client for each loop")
    assert last == "fine"
