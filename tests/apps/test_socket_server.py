"""Applications that serve on sockets: streams and datagrams, alone and in a loop of yours."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from functools import partial
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.application import Application
from pulsar.apps.socket import SocketServer, UdpSocketServer
from pulsar.errors import ImproperlyConfigured
from pulsar.protocols import (
    Connection,
    DatagramProtocol,
    DatagramServer,
    ProtocolConsumer,
    TcpServer,
)
from pulsar.tls import client_context
from tests.support.certs import Certificates, certs
from tests.support.process import MODES, ServerProcess
from tests.support.serving import PATIENCE, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["certs"]

ANYWHERE = "127.0.0.1:0"


class Echo(ProtocolConsumer):
    """A request is what arrives at once."""

    def data_received(self, data: bytes) -> None:
        self.write(data)
        self.finished()


class Shout(Echo):
    def data_received(self, data: bytes) -> None:
        super().data_received(data.upper())


class EchoDatagrams(DatagramProtocol):
    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.sendto(data, addr)


class Plain(asyncio.Protocol):
    """A protocol that knows nothing of pulsar."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


class PlainDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


# Without workers: a process that runs tests is not to be forked.
ALONE = {"bind": ANYWHERE, "concurrency": "thread"}


def server(callable: Any = Echo, **settings: Any) -> SocketServer:
    return SocketServer(callable, False, **{**ALONE, **settings})


def udp_server(callable: Any = EchoDatagrams, **settings: Any) -> UdpSocketServer:
    return UdpSocketServer(callable, False, **{**ALONE, **settings})


def ask(address: Any, data: bytes = b"hello", tls: ssl.SSLContext | None = None) -> bytes:
    """One question on a connection of its own."""
    with connected(address, tls) as sock:
        sock.sendall(data)
        return sock.recv(1000)


@contextmanager
def connected(address: Any, tls: ssl.SSLContext | None = None) -> Iterator[socket.socket]:
    """A connection; ``address`` as ``getsockname`` gives it."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
    else:
        sock = socket.create_connection(address[:2], timeout=PATIENCE)
    with sock:
        sock.settimeout(PATIENCE)
        if tls is None:
            yield sock
        else:
            with tls.wrap_socket(sock, server_hostname="localhost") as wrapped:
                yield wrapped


def ask_datagram(address: Any, data: bytes = b"hello") -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(data, address)
        return sock.recv(65536)


def tls_files(certs: Certificates) -> dict[str, str]:
    return {"cert_file": str(certs.server_cert), "key_file": str(certs.server_key)}


# -- as the seeds document it


def parameters(function: Any) -> list[tuple[str, Any]]:
    empty = inspect.Parameter.empty
    return [
        (name, None if parameter.default is empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
    ]


@pytest.mark.parametrize("cls", [SocketServer, UdpSocketServer])
def test_the_signatures_are_those_of_the_seeds(cls: type[SocketServer]) -> None:
    assert issubclass(cls, Application)
    assert parameters(cls)[:2] == [("callable", None), ("load_config", True)]
    assert [name for name, _ in parameters(cls)][2:] == ["params"]
    assert parameters(cls.protocol_factory) == [("self", None)]
    assert parameters(cls.monitor_start) == [("self", None), ("monitor", None)]
    assert parameters(cls.worker_start) == [("self", None), ("worker", None), ("exc", None)]
    assert parameters(cls.create_server) == [
        ("self", None),
        ("worker", None),
        ("protocol_factory", None),
        ("address", None),
        ("sockets", None),
        ("idx", 0),
    ]


def test_the_attributes_of_the_seeds() -> None:
    assert SocketServer.server_factory is TcpServer
    assert UdpSocketServer.server_factory is DatagramServer
    assert SocketServer.support_ssl is ssl
    application = server()
    assert application.address is None
    assert application.protocol_factory() is application.callable is Echo


# -- addresses


def test_the_address_is_known_once_it_serves(loop_kind: str) -> None:
    with serving(server(event_loop=loop_kind)) as application:
        assert application.addresses == [application.address]
        assert ask(application.address) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        ask(application.address)


def test_several_addresses(tmp_path: Path) -> None:
    path = str(tmp_path / "echo.sock")
    binds = (ANYWHERE, "127.0.0.1:0", f"unix:{path}?mode=0600")
    with serving(server(bind=binds)) as application:
        assert len(application.addresses) == 3
        assert application.addresses[2] == path
        assert (tmp_path / "echo.sock").stat().st_mode & 0o777 == 0o600
        for address in application.addresses:
            assert ask(address) == b"hello"
    assert not (tmp_path / "echo.sock").exists()


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_a_port_alone_is_for_both_families() -> None:
    with serving(server(bind=":0")) as application:
        hosts = {address[0]: address[1] for address in application.addresses}
        assert len(set(hosts.values())) == 1
        assert "0.0.0.0" in hosts
        for host in {"0.0.0.0": "127.0.0.1", "::": "::1"}.keys() & hosts.keys():
            assert ask((host, hosts[host])) == b"hello"


def test_where_it_serves_is_logged(
    caplog: pytest.LogCaptureFixture, certs: Certificates, tmp_path: Path
) -> None:
    binds = (ANYWHERE, f"unix:{tmp_path}/echo.sock?tls=off")
    with serving(server(bind=binds, name="joe", **tls_files(certs))) as application:
        assert caplog.messages == [
            f"joe serves on 127.0.0.1:{application.address[1]} (TLS)",
            f"joe serves on unix:{tmp_path}/echo.sock",
        ]


def test_all_addresses_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binds = (f"unix:{tmp_path}/echo.sock", f"unix:{tmp_path}/missing/echo.sock")
    with pytest.raises(SystemExit) as caught:
        server(bind=binds).start()
    assert caught.value.code == 3
    assert "missing/echo.sock does not exist; make it first" in capsys.readouterr().err
    assert not (tmp_path / "echo.sock").exists()


# -- what is served


@pytest.mark.parametrize(
    ("callable", "kind"),
    [
        (Echo, "consumer"),
        (lambda: Echo(), "consumer"),
        (partial(Connection, Echo), "connection"),
        (Plain, "protocol"),
        (lambda: Plain(), "protocol"),
        (Buffered, "protocol"),
        (stream, "stream"),
    ],
    ids=["consumer", "factory", "connection", "protocol", "lambda", "buffered", "stream"],
)
def test_every_kind_of_stream(loop_kind: str, callable: Any, kind: str) -> None:
    with serving(server(callable, event_loop=loop_kind)) as application:
        assert [info["kind"] for info in application.info()["servers"]] == [kind]
        assert ask(application.address) == b"hello"


@pytest.mark.parametrize("callable", [EchoDatagrams, PlainDatagrams, lambda: PlainDatagrams()])
def test_every_kind_of_datagram(loop_kind: str, callable: Any) -> None:
    with serving(udp_server(callable, event_loop=loop_kind)) as application:
        assert [info["kind"] for info in application.info()["servers"]] == ["datagram"]
        assert ask_datagram(application.address) == b"hello"


def test_a_factory_that_cannot_be_told_is_stated(loop_kind: str) -> None:
    class Both(Plain, asyncio.DatagramProtocol):
        """Looks like a datagram protocol, too."""

    with serving(server(Both, kind="protocol", event_loop=loop_kind)) as application:
        assert ask(application.address) == b"hello"


@pytest.mark.parametrize(
    ("application", "sentence"),
    [
        (server(None), "socketserver has nothing to serve: give SocketServer a callable"),
        (server(EchoDatagrams), "EchoDatagrams over streams: datagram protocols are served by Udp"),
        (server(bind="udp://:0"), "udp://:0 is for datagrams, which are served by UdpSocketServer"),
        (server(bind=":0?tls=on"), r":0\?tls=on asks for TLS: give cert_file, too"),
        (server(Echo, kind="stream"), "cannot serve Echo: it cannot be of the kind stream"),
        (server(stream, kind="consumer"), "stream: it cannot be of the kind consumer"),
        (server("Echo"), "cannot serve 'Echo': an object of type str cannot be called; accepted"),
        (udp_server(Echo), "cannot serve Echo over datagrams: accepted is a DatagramProtocol cl"),
        (udp_server(bind="unix:x"), "unix:x is for streams, which are served by SocketServer"),
        (udp_server(cert_file=__file__), "there is no TLS over datagrams: leave out cert_file"),
    ],
)
def test_what_cannot_be_served(
    application: SocketServer, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ImproperlyConfigured, match=sentence):
        application.check()
    with pytest.raises(SystemExit) as caught:
        application.start()
    assert caught.value.code == 3
    err = capsys.readouterr().err
    assert err.startswith(f"{application.name}: error: ")
    assert err.count("\n") == 1
    assert application.servers == []


def test_a_check_binds_nothing(tmp_path: Path) -> None:
    server(bind=f"unix:{tmp_path}/echo.sock").check()
    udp_server().check()
    assert list(tmp_path.iterdir()) == []


# -- settings reach the server


def test_settings_are_copied_to_the_server() -> None:
    settings = {"keep_alive": 7, "stall_timeout": 8, "max_connections": 9, "max_requests": 10}
    with serving(server(**settings)) as application:
        (tcp,) = application.servers
        assert {name: getattr(tcp, name) for name in settings} == settings


def test_foreign_protocols_are_idle_for_as_long_as_they_like() -> None:
    with serving(server(Plain)) as application:
        assert application.servers[0].keep_alive is None
    with serving(server(Plain, keep_alive=7)) as application:
        assert application.servers[0].keep_alive == 7
    with serving(server(Echo)) as application:
        assert application.servers[0].keep_alive == 75


# -- overrides


def test_a_protocol_factory_of_your_own(loop_kind: str) -> None:
    class Shouting(SocketServer):
        def protocol_factory(self) -> Any:
            assert self.callable is Echo
            return Shout

    with serving(Shouting(Echo, False, **ALONE, event_loop=loop_kind)) as application:
        assert ask(application.address) == b"HELLO"


def test_a_server_factory_of_your_own() -> None:
    class Counting(TcpServer):
        made = 0

        def create_protocol(self, **kw: Any) -> Any:
            type(self).made += 1
            return super().create_protocol(**kw)

    class ByClass(SocketServer):
        server_factory = Counting

    class ByMethod(SocketServer):
        def server_factory(self, *args: Any, **kw: Any) -> Any:
            return Counting(*args, **kw)

    for number, cls in enumerate((ByClass, ByMethod), 1):
        with serving(cls(Echo, False, **ALONE)) as application:
            assert type(application.servers[0]) is Counting
            assert ask(application.address) == b"hello"
        assert Counting.made == number


def test_a_datagram_server_of_your_own() -> None:
    class ByMethod(UdpSocketServer):
        def server_factory(self, *args: Any, **kw: Any) -> Any:
            kw["name"] = "mine"
            return DatagramServer(*args, **kw)

    with serving(ByMethod(EchoDatagrams, False, **ALONE)) as application:
        assert application.servers[0].name == "mine"
        assert ask_datagram(application.address) == b"hello"


# -- in a loop of yours


async def aask(address: Any, data: bytes = b"hello") -> bytes:
    return await asyncio.to_thread(ask, address, data)


def test_a_server_in_a_bare_loop(run: Callable[..., Any]) -> None:
    async def main() -> None:
        application = server(name="bare")
        tcp = await application.create_server()
        assert type(tcp) is TcpServer
        assert (tcp.name, tcp.address) == ("bare", application.address)
        assert await aask(application.address) == b"hello"
        await tcp.close()
        # Once more: the sockets were the server's.
        again = await application.create_server()
        assert await aask(application.address) == b"hello"
        await again.close()

    run(main())


def test_a_server_with_all_the_arguments_of_the_seeds(run: Callable[..., Any]) -> None:
    async def main() -> None:
        application = server(name="bare")
        sock = socket.create_server(("127.0.0.1", 0))
        on_sockets = await application.create_server(None, Shout, None, [sock], 1)
        at_address = await application.create_server(None, address=("127.0.0.1", 0), idx=2)
        assert (on_sockets.name, at_address.name) == ("bare.1", "bare.2")
        assert await aask(on_sockets.address) == b"HELLO"
        assert await aask(at_address.address) == b"hello"
        assert application.address is None
        assert [info["name"] for info in application.info()["servers"]] == ["bare.1", "bare.2"]
        await asyncio.gather(on_sockets.close(), at_address.close())

    run(main())


def test_a_datagram_server_in_a_bare_loop(run: Callable[..., Any]) -> None:
    async def main() -> None:
        application = udp_server()
        udp = await application.create_server()
        assert type(udp) is DatagramServer
        assert await asyncio.to_thread(ask_datagram, application.address) == b"hello"
        await udp.close()

    run(main())


def test_the_parts_of_a_start(run: Callable[..., Any]) -> None:
    """What a process tree calls, one after the other."""

    async def main() -> None:
        application = server()
        await application.monitor_start()
        bound = application.address
        assert application.servers == []
        await application.worker_start(None)
        assert application.address == bound
        assert await aask(bound) == b"hello"
        await application.worker_stop(None, PATIENCE)
        await application.monitor_stop()
        with pytest.raises(ConnectionRefusedError):
            await aask(bound)

    run(main())


def test_a_worker_that_does_not_start(run: Callable[..., Any]) -> None:
    async def main() -> None:
        application = server()
        await application.worker_start(None, LookupError())
        assert application.servers == []

    run(main())


# -- the end


def test_a_request_in_hand_is_finished(loop_kind: str) -> None:
    asked, go_on = threading.Event(), threading.Event()

    class Slow(ProtocolConsumer):
        def data_received(self, data: bytes) -> None:
            self.create_task(self.answer(data))

        async def answer(self, data: bytes) -> None:
            asked.set()
            await asyncio.to_thread(go_on.wait, PATIENCE)
            self.write(data)
            self.finished()

    with (
        serving(server(Slow, event_loop=loop_kind)) as application,
        connected(application.address) as sock,
    ):
        sock.sendall(b"hello")
        assert asked.wait(PATIENCE)
        application.stop()
        # It has stopped listening before it waits for us.
        with pytest.raises(ConnectionError):
            while True:
                socket.create_connection(application.address, timeout=PATIENCE).close()
        go_on.set()
        assert sock.recv(100) == b"hello"
        assert sock.recv(100) == b""


def test_a_quick_stop_cuts(loop_kind: str) -> None:
    with (
        serving(server(stream, event_loop=loop_kind)) as application,
        connected(application.address) as sock,
    ):
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        application.stop(graceful=False)
        assert sock.recv(100) == b""


def test_max_requests_ends_the_application(loop_kind: str) -> None:
    stopped = threading.Event()
    application = server(max_requests=3, event_loop=loop_kind)
    application.bind_event("stop", lambda arg, exc=None: stopped.set())
    with serving(application), connected(application.address) as sock:
        for _ in range(3):
            assert not stopped.is_set()
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"
        assert sock.recv(100) == b""
        assert stopped.wait(PATIENCE)
    assert application.servers[0].requests_processed == 3


def test_max_requests_counts_connections_where_requests_cannot_be_seen(loop_kind: str) -> None:
    stopped = threading.Event()
    application = server(stream, max_requests=2, event_loop=loop_kind)
    application.bind_event("stop", lambda arg, exc=None: stopped.set())
    with serving(application):
        assert ask(application.address) == b"hello"
        assert ask(application.address) == b"hello"
        assert stopped.wait(PATIENCE)


def test_max_requests_counts_datagrams(loop_kind: str) -> None:
    stopped = threading.Event()
    application = udp_server(max_requests=2, event_loop=loop_kind)
    application.bind_event("stop", lambda arg, exc=None: stopped.set())
    with serving(application):
        assert ask_datagram(application.address) == b"hello"
        assert ask_datagram(application.address) == b"hello"
        assert stopped.wait(PATIENCE)


# -- TLS


def test_tls(certs: Certificates, loop_kind: str) -> None:
    with serving(server(event_loop=loop_kind, **tls_files(certs))) as application:
        assert ask(application.address, tls=client_context(certs.ca)) == b"hello"


def test_tls_on_some_addresses_only(certs: Certificates, loop_kind: str) -> None:
    binds = (ANYWHERE, "127.0.0.1:0?tls=off", "127.0.0.1:0?tls=on")
    with serving(server(bind=binds, event_loop=loop_kind, **tls_files(certs))) as application:
        tls = client_context(certs.ca)
        secure, plain, also_secure = application.addresses
        assert ask(secure, tls=tls) == b"hello"
        assert ask(plain) == b"hello"
        assert ask(also_secure, tls=tls) == b"hello"


def test_client_certificates_and_alpn(certs: Certificates, loop_kind: str) -> None:
    seen: list[Any] = []

    class Looking(Echo):
        def data_received(self, data: bytes) -> None:
            tls = self.transport.get_extra_info("ssl_object")
            seen.append((tls.getpeercert()["subjectAltName"], tls.selected_alpn_protocol()))
            super().data_received(data)

    settings = {
        **tls_files(certs),
        "ca_certs": str(certs.ca),
        "cert_reqs": "required",
        "alpn": ("echo/2", "echo/1"),
    }
    known = client_context(
        certs.ca, cert_file=certs.client_cert, key_file=certs.client_key, alpn=["echo/1"]
    )
    with serving(server(Looking, event_loop=loop_kind, **settings)) as application:
        assert ask(application.address, tls=known) == b"hello"
        # With TLS 1.3 a client learns of its refusal when it waits for an answer.
        with suppress(ssl.SSLError, ConnectionError):
            assert ask(application.address, tls=client_context(certs.ca)) == b""
        assert ask(application.address, tls=known) == b"hello"
    assert seen == [((("email", "client@pulsar.example"),), "echo/1")] * 2


# -- in processes of their own


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A directory with a module ``served``."""
    (tmp_path / "served.py").write_text(
        "import os\n"
        "from pulsar import ProtocolConsumer\n"
        "class Lines(ProtocolConsumer):\n"
        "    heard = b''\n"
        "    def data_received(self, data):\n"
        "        self.heard += data\n"
        "        if data.endswith(b'\\n'):\n"
        "            self.write(self.heard)\n"
        "            self.finished()\n"
        "async def pid(reader, writer):\n"
        "    writer.write(str(os.getpid()).encode())\n"
        "    writer.close()\n"
    )
    return tmp_path


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("options", MODES)
def test_hup_renews_certificates_and_disturbs_nobody(
    certs: Certificates, served: Path, loop: str, options: Sequence[str]
) -> None:
    cert, key = served / "server.crt", served / "server.key"
    tls = client_context(certs.ca)
    done = "reloaded; settings that have changed: none" if options else "generation 2 serves"

    def install(name: str) -> None:
        copyfile(certs.ca.with_name(f"{name}.crt"), cert)
        copyfile(certs.ca.with_name(f"{name}.key"), key)

    def serial() -> str:
        with connected(process.address, tls) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            certificate = sock.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    install("server")
    files = ("--cert-file", "server.crt", "--key-file", "server.key", "--event-loop", loop)
    arguments = ("-m", "pulsar", "served:Lines", "--bind", ANYWHERE, *files, *options)
    with (
        ServerProcess(*arguments, cwd=served) as process,
        connected(process.address, tls) as kept,
    ):
        first = serial()
        kept.sendall(b"one\n")
        assert kept.recv(100) == b"one\n"
        kept.sendall(b"tw")
        install("renewed")
        process.send(signal.SIGHUP)
        process.wait_for(done)
        second = serial()
        assert second != first
        # A certificate without its key: everything goes on as it was.
        copyfile(certs.server_key, key)
        process.send(signal.SIGHUP)
        process.wait_for(
            f"not reloaded, everything goes on as it was: TLS key {key} does not belong to "
            f"certificate {cert}"
        )
        assert serial() == second
        # A request that began before it all is finished.
        kept.sendall(b"o\n")
        assert kept.recv(100) == b"two\n"


@pytest.mark.parametrize("options", MODES)
def test_the_processes_are_gone_when_it_says_so(served: Path, options: Sequence[str]) -> None:
    arguments = ("-m", "pulsar", "served:pid", "--bind", ANYWHERE, *options)
    with ServerProcess(*arguments, cwd=served) as process:
        with connected(process.address) as sock:
            pid = int(sock.recv(100))
        assert (pid == process.process.pid) == bool(options)
        assert process.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            ask(process.address)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
