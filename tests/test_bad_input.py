"""What goes wrong for other reasons than ours: the sentence that is said, and what goes on.

One section for each kind of bad input. "What goes on" is whoever else is served by
the same process, or the client that met the error.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from examples.echo.manage import Echo, EchoServerProtocol
from examples.echoudp.manage import EchoUdp, EchoUdpServerProtocol
from pulsar.apps.socket import SocketServer, UdpSocketServer
from pulsar.errors import ConnectionClosed, FrameTooLarge, ImproperlyConfigured, ProtocolError
from pulsar.framing import LengthFramer, LineFramer
from pulsar.protocols import DatagramProtocol, DatagramServer, ProtocolConsumer, TcpServer
from pulsar.tls import client_context
from tests.support.certs import KEY_PASSWORD, Certificates, certs
from tests.support.privileges import unprivileged
from tests.support.process import MODES, clean_environment
from tests.support.serving import PATIENCE, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["certs"]

ANYWHERE = "127.0.0.1:0"
END = b"\r\n\r\n"


# Without workers: a process that runs tests is not to be forked.
ALONE = {"bind": ANYWHERE, "concurrency": "thread"}


def server(callable: Any = EchoServerProtocol, **settings: Any) -> SocketServer:
    return SocketServer(callable, False, **{**ALONE, **settings})


def udp_server(callable: Any = EchoUdpServerProtocol, **settings: Any) -> UdpSocketServer:
    return UdpSocketServer(callable, False, **{**ALONE, **settings})


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[SocketServer], str]:
    """Start an application that cannot: it ends with code 3 and one sentence, which is given."""

    def refused(application: SocketServer) -> str:
        with pytest.raises(SystemExit) as caught:
            application.start()
        assert caught.value.code == 3
        out, err = capsys.readouterr()
        name = f"{application.name}: error: "
        assert (out, err[: len(name)], err.count("\n")) == ("", name, 1)
        return err[len(name) : -1]

    return refused


@contextmanager
def connected(application: SocketServer) -> Iterator[socket.socket]:
    with socket.create_connection(application.address, timeout=PATIENCE) as sock:
        yield sock


def ask(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return sock.recv(1000)


def ended(sock: socket.socket) -> bool:
    """Whether the other end has closed, once everything that it has said is read."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


# -- a port in use


def test_a_port_in_use(refused: Callable[..., str], loop_kind: str) -> None:
    with serving(server(name="first", event_loop=loop_kind)) as first:
        host, port = first.address
        where = f"{host}:{port}"
        assert refused(server(name="second", bind=where)) == (
            f"bind '{where}': {where} is in use; stop what listens there or choose another address"
        )
        with Echo(first.address) as echo:
            assert echo(b"still here") == b"still here"


def test_one_port_of_several_in_use(refused: Callable[..., str], tmp_path: Path) -> None:
    with serving(server(name="first")) as first:
        host, port = first.address
        binds = (f"unix:{tmp_path}/second.sock", f"{host}:{port}")
        assert f"{host}:{port} is in use" in refused(server(name="second", bind=binds))
        assert list(tmp_path.iterdir()) == []


def test_a_datagram_port_in_use(refused: Callable[..., str]) -> None:
    with serving(udp_server(name="first")) as first:
        host, port = first.address
        sentence = refused(udp_server(name="second", bind=f"{host}:{port}"))
        assert f"{host}:{port} is in use; stop what listens there" in sentence
        with EchoUdp(first.address) as echo:
            assert echo(b"still here") == b"still here"


def test_a_unix_socket_in_use(refused: Callable[..., str], tmp_path: Path) -> None:
    where = f"unix:{tmp_path}/echo.sock"
    with serving(server(name="first", bind=where)):
        sentence = refused(server(name="second", bind=where))
        assert f"{tmp_path}/echo.sock is in use; stop what listens there" in sentence
        with Echo(where) as echo:
            assert echo(b"still here") == b"still here"


# -- a host that nobody knows


def test_an_unknown_host(refused: Callable[..., str], tmp_path: Path) -> None:
    binds = (f"unix:{tmp_path}/echo.sock", "no-such-host.invalid:8060")
    sentence = refused(server(bind=binds))
    expected = r"bind 'no-such-host\.invalid:8060': host 'no-such-host\.invalid' is not known here"
    assert re.match(expected, sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_client_to_an_unknown_host() -> None:
    with serving(server()) as application, Echo("no-such-host.invalid:8060") as echo:
        with pytest.raises(socket.gaierror, match=r"cannot connect to no-such-host\.invalid:8060"):
            echo(b"hello")
        echo.address = application.address
        assert echo(b"hello") == b"hello"


# -- certificates and keys


def tls(cert: Path | str, key: Path | str | None, **settings: Any) -> dict[str, Any]:
    return {"cert_file": str(cert), "key_file": key and str(key), **settings}


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    sentence = f"cert_file cannot be '{tmp_path}/no.crt': give the path of a file that exists and"
    with pytest.raises(ImproperlyConfigured, match=re.escape(sentence)):
        server(**tls(f"{tmp_path}/no.crt", None))


@pytest.mark.skipif("sys.platform == 'win32'", reason="files have no such modes there")
def test_a_key_that_we_may_not_read(certs: Certificates, tmp_path: Path) -> None:
    key = tmp_path / "server.key"
    shutil.copyfile(certs.server_key, key)
    key.chmod(0)
    sentence = f"key_file cannot be '{key}': give the path of a file that exists and can be read"
    with unprivileged(), pytest.raises(ImproperlyConfigured, match=re.escape(sentence)):
        server(key_file=str(key))


def test_a_key_that_does_not_belong(certs: Certificates, refused: Callable[..., str]) -> None:
    cert, key = certs.server_cert, certs.renewed_key
    expected = f"TLS key {key} does not belong to certificate {cert}"
    assert refused(server(**tls(cert, key))) == expected


def test_a_key_that_is_none(certs: Certificates, refused: Callable[..., str]) -> None:
    expected = f"TLS file {certs.server_cert} holds no private key in PEM form"
    assert refused(server(**tls(certs.server_cert, certs.server_cert))) == expected


def test_a_key_without_its_password(certs: Certificates, refused: Callable[..., str]) -> None:
    cert, key = certs.server_cert, certs.server_encrypted_key
    sentence = f"TLS key {key} is encrypted and its password is"
    assert refused(server(**tls(cert, key))) == f"{sentence} missing"
    assert refused(server(**tls(cert, key, key_password="guessed"))) == f"{sentence} wrong"
    with serving(server(**tls(cert, key, key_password=KEY_PASSWORD))) as application:
        assert application.address


def test_a_renewed_certificate_that_is_none(
    certs: Certificates, tmp_path: Path, loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    cert = tmp_path / "server.pem"
    shutil.copyfile(certs.server_bundle, cert)
    application = server(event_loop=loop_kind, **tls(cert, None))

    def reload() -> None:
        loop = loops_of[0]
        asyncio.run_coroutine_threadsafe(application.reload(), loop).result(PATIENCE)

    loops_of: list[Any] = []
    application.bind_event(
        "start", lambda arg, exc=None: loops_of.append(asyncio.get_running_loop())
    )
    with serving(application), EchoOverTls(application.address, certs) as echo:
        assert echo(b"before") == b"before"
        for content in (b"", certs.server_cert.read_bytes()):
            cert.write_bytes(content)
            with pytest.raises(ImproperlyConfigured, match=f"TLS file {cert} holds no"):
                reload()
            assert echo(b"kept") == b"kept"
            with EchoOverTls(application.address, certs) as newcomer:
                assert newcomer(b"new") == b"new"


class EchoOverTls(Echo):
    def __init__(self, address: Any, certs: Certificates) -> None:
        super().__init__(("localhost", address[1]))
        self.context = client_context(certs.ca)

    def connect(self) -> Any:
        return self.create_connection(self.address, ssl=self.context)


# -- what is served: a module with an error, a wrong type


@pytest.mark.parametrize("options", MODES)
def test_a_callable_that_cannot_be_imported(tmp_path: Path, options: Sequence[str]) -> None:
    (tmp_path / "broken.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("def settings():\n    return {}['HOST']\n\nsettings()\n")
    where = f"unix:{tmp_path}/echo.sock"
    done = subprocess.run(
        [sys.executable, "-m", "pulsar", "serve", "broken:Echo", "--bind", where, *options],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line.strip() for line in lines if line.startswith("  File ")] == [
        f'File "{tmp_path}/broken.py", line 1, in <module>',
        f'File "{tmp_path}/helper.py", line 4, in <module>',
        f'File "{tmp_path}/helper.py", line 2, in settings',
    ]
    assert lines[-2:] == [
        "KeyError: 'HOST'",
        "pulsar: error: the module 'broken' cannot be imported, see the traceback above",
    ]
    assert not (tmp_path / "echo.sock").exists()


@pytest.mark.parametrize(
    ("thing", "why"),
    [
        (b"Echo", "an object of type bytes cannot be called"),
        (dict, "the class dict is no protocol"),
        (EchoServerProtocol(), "it is an instance: give its class"),
        (lambda one, two, three: None, "it needs 3 arguments"),
        (lambda: 5, "it made a int"),
    ],
    ids=["bytes", "class", "instance", "arguments", "product"],
)
def test_a_wrong_type(run: Callable[..., Any], thing: Any, why: str) -> None:
    """The loop's other server goes on."""

    async def main() -> None:
        other = TcpServer(EchoServerProtocol, address=("127.0.0.1", 0))
        await other.start_serving()
        bad = server(thing)
        with pytest.raises(ImproperlyConfigured) as caught:
            await bad.create_server()
        sentence = str(caught.value)
        assert sentence.startswith("cannot serve ")
        assert why in sentence
        assert "; accepted is a ProtocolConsumer class, an asyncio Protocol" in sentence
        assert (bad.servers, bad.address) == ([], None)
        async with Echo(other.address) as echo:
            assert await echo(b"hello") == b"hello"
        await other.close()

    run(main())


# -- a consumer that raises


class Faulty(ProtocolConsumer):
    """Echoes lines; raises where a line tells it to."""

    greeted = 0

    def connection_made(self, connection: Any) -> None:
        self.framer = LineFramer(max_size=100)

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.framer.split(data)
        if line == b"data_received":
            raise LookupError("mine")
        if line == b"task":
            self.create_task(self.fail())
        elif line == b"protocol":
            raise ProtocolError("a line that means nothing")
        elif line == b"abort":
            self.abort_request()
        elif line is not None:
            self.write(self.framer.encode(line))
            self.finished()
        return rest

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.framer.pending:
            raise LookupError("mine")

    async def fail(self) -> None:
        raise LookupError("mine")


@contextmanager
def beside(application: SocketServer) -> Iterator[socket.socket]:
    """A connection that is there before, and asked again behind; newcomers are served, too."""
    with serving(application), connected(application) as other:
        assert ask(other, b"before\n") == b"before\n"
        with connected(application) as sock:
            yield sock
        assert ask(other, b"behind\n") == b"behind\n"
        with connected(application) as newcomer:
            assert ask(newcomer, b"new\n") == b"new\n"


@pytest.mark.parametrize("where", ["data_received", "task"])
def test_a_consumer_that_raises(
    where: str, loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with beside(server(Faulty, event_loop=loop_kind)) as sock:
        host, port = sock.getsockname()
        sock.sendall(where.encode() + b"\n")
        assert ended(sock)
    (record,) = errors(caplog)
    assert record.getMessage() == f"connection from {host}:{port} closed: error in Faulty"
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "LookupError('mine')"


def test_a_consumer_that_raises_at_the_end(
    loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with beside(server(Faulty, event_loop=loop_kind)) as sock:
        assert ask(sock, b"whole\nunfinished") == b"whole\n"
        # A reset: behind a mere end the server might still answer.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    (record,) = errors(caplog)
    assert "Faulty" in record.getMessage()
    assert record.getMessage().endswith("connection_lost failed")
    assert repr(record.exc_info and record.exc_info[1]) == "LookupError('mine')"


@pytest.mark.parametrize(("line", "level"), [(b"protocol\n", "INFO"), (b"abort\n", "DEBUG")])
def test_a_request_that_is_refused_is_no_error(
    line: bytes, level: str, loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with beside(server(Faulty, event_loop=loop_kind, log_level="debug")) as sock:
        host, port = sock.getsockname()
        sock.sendall(line)
        assert ended(sock)
    assert errors(caplog) == []
    said = [record for record in caplog.records if record.name == "pulsar.protocols"]
    assert level in [record.levelname for record in said]
    if level == "INFO":
        sentence = f"connection from {host}:{port} closed: a line that means nothing"
        assert sentence in [record.getMessage() for record in said]


def test_a_factory_that_raises(loop_kind: str, caplog: pytest.LogCaptureFixture) -> None:
    failing = threading.Event()

    def factory() -> Faulty:
        if failing.is_set():
            raise LookupError("mine")
        return Faulty()

    with (
        serving(server(factory, event_loop=loop_kind)) as application,
        connected(application) as other,
    ):
        assert ask(other, b"before\n") == b"before\n"
        failing.set()
        with connected(application) as sock:
            assert ended(sock)
        failing.clear()
        assert ask(other, b"behind\n") == b"behind\n"
    (record,) = errors(caplog)
    assert record.getMessage().endswith("cannot make a consumer")
    assert repr(record.exc_info and record.exc_info[1]) == "LookupError('mine')"


def test_an_event_callback_that_raises(loop_kind: str, caplog: pytest.LogCaptureFixture) -> None:
    class Listened(SocketServer):
        async def create_server(self, *args: Any, **kw: Any) -> Any:
            made = await super().create_server(*args, **kw)
            made.bind_event("pre_request", bad_callback)
            return made

    def bad_callback(arg: Any, exc: Any = None) -> None:
        raise LookupError("mine")

    application = Listened(Faulty, False, event_loop=loop_kind, **ALONE)
    with serving(application), connected(application) as sock:
        assert ask(sock, b"one\n") == b"one\n"
        assert ask(sock, b"two\n") == b"two\n"
    first, second = errors(caplog)
    assert re.fullmatch(
        "callback <.*bad_callback.*> of event 'pre_request' failed", first.getMessage()
    )
    assert repr(second.exc_info and second.exc_info[1]) == "LookupError('mine')"


def test_a_stream_handler_that_raises(loop_kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def faulty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            if line == b"raise\n":
                raise LookupError("mine")
            writer.write(line)
        writer.close()

    with beside(server(faulty, event_loop=loop_kind)) as sock:
        host, port = sock.getsockname()
        sock.sendall(b"raise\n")
        assert ended(sock)
    (record,) = errors(caplog)
    assert record.getMessage().startswith(f"connection from {host}:{port} closed: error in ")
    assert record.getMessage().endswith("faulty")
    assert repr(record.exc_info and record.exc_info[1]) == "LookupError('mine')"


def test_somebody_else_s_protocol_that_raises(
    loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Foreign(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if data == b"raise\n":
                raise LookupError("mine")
            self.transport.write(data)

    with beside(server(Foreign, event_loop=loop_kind)) as sock:
        sock.sendall(b"raise\n")
        assert ended(sock)
    # Nothing of ours stands between it and the loop: it is the loop that logs.
    (record,) = errors(caplog)
    assert record.name == "asyncio"
    assert repr(record.exc_info and record.exc_info[1]) == "LookupError('mine')"


def test_a_datagram_protocol_that_raises(loop_kind: str, caplog: pytest.LogCaptureFixture) -> None:
    class FaultyDatagrams(DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            if data == b"raise":
                raise LookupError("mine")
            self.sendto(data, addr)

    with (
        serving(udp_server(FaultyDatagrams, event_loop=loop_kind)) as application,
        EchoUdp(application.address) as echo,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        for _ in range(2):
            sock.sendto(b"raise", application.address)
            assert echo(b"hello") == b"hello"
    assert [repr(r.exc_info and r.exc_info[1]) for r in errors(caplog)] == [
        "LookupError('mine')"
    ] * 2


# -- a framer that is fed more than its cap


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "endless"])
def test_a_frame_over_the_cap(
    complete: bool, loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with beside(server(Faulty, event_loop=loop_kind)) as sock:
        host, port = sock.getsockname()
        sock.sendall(b"small\n" + b"x" * 200 + (b"\n" if complete else b""))
        assert sock.recv(1000) == b"small\n"
        assert ended(sock)
    assert errors(caplog) == []
    sentence = (
        f"connection from {host}:{port} closed: LineFramer of at most 100 bytes: "
        "the peer sent a frame that is larger"
    )
    assert sentence in caplog.messages


def test_a_frame_with_a_length_over_the_cap(
    loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Framed(ProtocolConsumer):
        def connection_made(self, connection: Any) -> None:
            self.framer = LengthFramer(max_size=100)

        def data_received(self, data: bytes) -> None:
            for message in self.framer.feed(data):
                self.write(self.framer.encode(message))

    def frame(message: bytes) -> bytes:
        return len(message).to_bytes(4, "big") + message

    with (
        serving(server(Framed, event_loop=loop_kind)) as application,
        connected(application) as other,
        connected(application) as sock,
    ):
        assert ask(other, frame(b"before")) == frame(b"before")
        # Refused from its header on: nobody waits for 4 GiB.
        sock.sendall(b"\xff" * 4)
        assert ended(sock)
        assert ask(other, frame(b"behind")) == frame(b"behind")
    assert errors(caplog) == []
    expected = "LengthFramer(4) of at most 100 bytes: the peer sent a frame that is larger"
    assert any(message.endswith(expected) for message in caplog.messages)


def test_an_answer_over_the_cap_of_the_client(loop_kind: str) -> None:
    async def verbose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            message = (await reader.readuntil(END)).removesuffix(END)
            writer.write(message * (100_000 if message == b"long" else 1) + END)

    with (
        serving(server(verbose, event_loop=loop_kind)) as application,
        Echo(application.address) as echo,
    ):
        expected = "DelimiterFramer.* of at most 65536 bytes: the peer sent a frame that is"
        with pytest.raises(FrameTooLarge, match=expected):
            echo(b"long")
        assert echo(b"short") == b"short"


# -- a datagram that is larger than the buffer


def test_a_datagram_that_no_socket_could_send(
    loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Large(DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            if data == b"checked":
                self.sendto(bytes(65508), addr)
            elif data == b"unchecked":
                self.transport.sendto(bytes(65508), addr)
            else:
                self.sendto(data, addr)

    with (
        serving(udp_server(Large, event_loop=loop_kind)) as application,
        EchoUdp(application.address) as echo,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        for data in (b"checked", b"unchecked"):
            sock.sendto(data, application.address)
            assert echo(b"hello") == b"hello"
        with pytest.raises(ValueError, match="a datagram of 65508 bytes cannot be sent: the larg"):
            echo(bytes(65508))
        assert echo(bytes(65507)) == bytes(65507)
    checked, unchecked = errors(caplog)
    assert "65508 bytes cannot be sent: the largest has 65507" in str(
        checked.exc_info and checked.exc_info[1]
    )
    assert unchecked.getMessage() == ("a datagram was too large for the socket and was not sent")


@pytest.mark.skipif("sys.platform != 'linux'", reason="other systems size their buffers otherwise")
def test_a_datagram_that_the_receiver_has_no_room_for(run: Callable[..., Any]) -> None:
    """It is lost, as datagrams may be; the next one is answered."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.bind(("127.0.0.1", 0))
            client.connect(sock.getsockname())
            client.setblocking(False)
            # An empty buffer takes one datagram of any size; then it is over-full.
            for size in (60_000, 60_001, 60_002):
                client.send(bytes(size))
            udp = DatagramServer(EchoUdpServerProtocol, sockets=[sock])
            await udp.create_endpoint()
            try:
                assert len(await loop.sock_recv(client, 65536)) == 60_000
                client.send(b"small")
                assert await loop.sock_recv(client, 65536) == b"small"
            finally:
                await udp.close()

    run(main())


# -- a client to a closed port


@pytest.mark.parametrize("client", [Echo, EchoUdp])
def test_a_closed_port(run: Callable[..., Any], client: Any) -> None:
    stream = client is Echo
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        address = taken.getsockname()
        # A datagram socket would take what is sent to it.
        if not stream:
            taken.close()

        async def main() -> None:
            async with client(address) as echo:
                where = f"cannot connect to 127.0.0.1:{address[1]}: " if stream else ""
                with pytest.raises(ConnectionRefusedError, match=f"{where}Connection refused"):
                    await echo(b"hello")
                application = (server if stream else udp_server)()
                other = await application.create_server()
                echo.address = application.address
                assert await echo(b"hello") == b"hello"
                await echo.close()
                await other.close()

        run(main())


# -- a server that closes in mid-answer


def test_a_server_that_closes_in_mid_answer(loop_kind: str) -> None:
    class Half(EchoServerProtocol):
        def response(self, data: bytes) -> Any:
            if data != b"half":
                return super().response(data)
            self.write(b"ha")
            self.connection.close()  # type: ignore[union-attr]
            return None

    with serving(server(Half, event_loop=loop_kind)) as application:
        host, port = application.address
        with Echo(application.address) as other, Echo(application.address) as echo:
            assert other(b"before") == b"before"
            with pytest.raises(ConnectionClosed) as caught:
                echo(b"half")
            expected = "closed the connection before the response was complete"
            assert str(caught.value) == f"the server {host}:{port} {expected}"
            assert repr(echo.pool) == "<Pool open, 0 in use, 0 available of 10, 0 waiting>"
            assert echo(b"whole") == b"whole"
            assert other(b"behind") == b"behind"
            assert other.sessions == 1


def test_a_server_that_ends_in_mid_answer(loop_kind: str) -> None:
    asked = threading.Event()

    class Never(EchoServerProtocol):
        def response(self, data: bytes) -> Any:
            asked.set()
            self.write(b"ne")

        def finished(self, result: Any = None, exc: Any = None) -> None:
            if exc is not None:
                super().finished(result, exc)

    raised: list[Any] = []

    def call() -> None:
        try:
            echo(b"hello")
        except Exception as exc:
            raised.append(exc)

    with serving(server(Never, event_loop=loop_kind)) as application:
        host, port = application.address
        echo = Echo(application.address)
        thread = threading.Thread(target=call)
        thread.start()
        assert asked.wait(PATIENCE)
        application.stop(graceful=False)
        thread.join()
    assert str(raised[0]).startswith(f"the server {host}:{port} closed the connection before")
    with serving(server(bind=f"{host}:{port}", event_loop=loop_kind)):
        assert echo(b"hello") == b"hello"
    echo.close()
