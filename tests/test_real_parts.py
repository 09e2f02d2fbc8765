"""Servers in processes of their own, met by OpenSSL, socat, systemd's protocol and signals.

What is served is the echo example. What the settings mean is tested where they live; here
everything has to work together, from the command line to the exit code: with workers, as by
default, and in a single process as well where that is another way to do it.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support import loops
from tests.support.certs import Certificates, certs
from tests.support.plain import connect, read, read_to_the_end
from tests.support.process import EXAMPLES, MODES, PATIENCE, ServerProcess, clean_environment
from tests.support.programs import require_program

__all__ = ["certs"]

HELLO = b"Hello!\r\n\r\n"
LOCALHOST = ("--bind", "127.0.0.1:0")
MESSAGE_IN_TWO = (HELLO[:4], HELLO[4:])

Start = Callable[..., ServerProcess]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Sequence[str]:
    """Flags for a server with workers, and for one without, in turn."""
    flags: Sequence[str] = request.param
    return flags


def until(condition: Callable[[], bool], failure: str) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.01)


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Start:
    """Serves the echo protocol from the command line; see ``on_each_loop``."""
    loop = getattr(request, "param", "auto")
    command = ("-m", "pulsar", "serve", "manage:EchoServerProtocol", "--event-loop", loop)
    return partial(ServerProcess, *command, cwd=EXAMPLES / "echo")


# The others need no loop but the default one: what loops do differently is tested elsewhere.
on_each_loop = pytest.mark.parametrize("serve", list(loops.KINDS), indirect=True)


@pytest.fixture
def manage() -> Start:
    """Runs the echo example as a script."""
    return partial(ServerProcess, "manage.py", cwd=EXAMPLES / "echo")


def says_hello(sock: socket.socket) -> bool:
    sock.sendall(HELLO)
    return read(sock, len(HELLO)) == HELLO


# TLS


@pytest.fixture
def tls(serve: Start, certs: Certificates) -> Start:
    key, cert = certs.server_key, certs.server_cert
    return partial(serve, *LOCALHOST, "--key-file", key, "--cert-file", cert)


@pytest.fixture
def guarded(tls: Start, certs: Certificates) -> Start:
    """TLS with a client certificate required."""
    return partial(tls, "--cert-reqs", "required", "--ca-certs", certs.ca)


def tls_client(
    server: ServerProcess,
    certs: Certificates,
    cert: Path | None = None,
    *,
    alpn: str | None = None,
    address: tuple[str, int] | None = None,
) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=certs.ca)
    if cert is not None:
        context.load_cert_chain(cert, cert.with_suffix(".key"))
    if alpn is not None:
        context.set_alpn_protocols(["unknown", alpn])
    return context.wrap_socket(connect(address or server.address), server_hostname="localhost")


def openssl_client(
    server: ServerProcess, certs: Certificates, *options: str | Path, quiet: bool = True
) -> subprocess.Popen[bytes]:
    host, port = server.address
    return subprocess.Popen(
        [
            *(require_program("openssl", "openssl"), "s_client", "-connect", f"{host}:{port}"),
            *("-CAfile", certs.ca, "-verify_return_error", "-verify_hostname", "localhost"),
            *(["-quiet", "-no_ign_eof"] if quiet else []),
            *options,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def openssl_hello(client: subprocess.Popen[bytes]) -> bytes:
    """Say hello; returns the answer, nothing when there was none."""
    answer = b""
    # Closing its input tries again to write what could not be written.
    with suppress(BrokenPipeError), client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(HELLO)
        client.stdin.flush()
        # It ends when its input does, so not before the answer is there.
        answer = client.stdout.read(len(HELLO))
        client.stdin.close()
    return answer


@on_each_loop
def test_openssl_talks_to_the_echo_server(tls: Start, certs: Certificates) -> None:
    with tls() as server:
        assert openssl_hello(openssl_client(server, certs)) == HELLO
        assert openssl_hello(openssl_client(server, certs, "-tls1_2")) == HELLO
        assert " (TLS)\n" in server.stderr


def test_tls_1_1_is_refused(tls: Start, certs: Certificates) -> None:
    with tls() as server:
        for version, answer in (("-tls1_1", b""), ("-tls1_2", HELLO)):
            client = openssl_client(server, certs, version, "-cipher", "DEFAULT@SECLEVEL=0")
            assert openssl_hello(client) == answer
        assert "Traceback" not in server.stderr


@on_each_loop
def test_python_talks_to_the_echo_server(tls: Start, certs: Certificates) -> None:
    with tls() as server, tls_client(server, certs) as client:
        assert says_hello(client)
        assert client.version() == "TLSv1.3"
        big = b"x" * 60_000 + b"\r\n\r\n"
        client.sendall(big)
        assert read(client, len(big)) == big
        assert client.unwrap() is not None


def test_plain_text_costs_nothing_but_its_connection(tls: Start, certs: Certificates) -> None:
    with tls() as server:
        with connect(server.address) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert HELLO not in read_to_the_end(plain)
        with tls_client(server, certs) as client:
            assert says_hello(client)
        assert "Traceback" not in server.stderr


def test_alpn(tls: Start, certs: Certificates) -> None:
    with tls("--alpn", "echo/2", "--alpn", "echo/1") as server:
        with tls_client(server, certs, alpn="echo/1") as client:
            assert client.selected_alpn_protocol() == "echo/1"
            assert says_hello(client)
        with openssl_client(server, certs, "-alpn", "echo/1,echo/2", quiet=False) as client_2:
            output, _ = client_2.communicate(timeout=PATIENCE)
        assert b"ALPN protocol: echo/2\n" in output


def test_a_client_certificate_is_accepted(guarded: Start, certs: Certificates) -> None:
    files = ("-cert", certs.client_cert, "-key", certs.client_key)
    with guarded() as server:
        with tls_client(server, certs, certs.client_cert) as client:
            assert says_hello(client)
        assert openssl_hello(openssl_client(server, certs, *files)) == HELLO
        assert openssl_hello(openssl_client(server, certs, "-tls1_2", *files)) == HELLO


def test_a_client_without_a_good_certificate_is_refused(
    guarded: Start, certs: Certificates
) -> None:
    stranger = ("-cert", certs.stranger_cert, "-key", certs.stranger_key)
    with guarded() as server:
        for files in ((), stranger):
            for version in ("-tls1_2", "-tls1_3"):
                assert openssl_hello(openssl_client(server, certs, version, *files)) == b""
        # With TLS 1.3 a client is done before the server looks at its certificate. The loops
        # close without the alert that says why.
        refused = (ssl.SSLError, ConnectionResetError, EOFError)
        for cert in (None, certs.stranger_cert):
            with tls_client(server, certs, cert) as client, pytest.raises(refused):
                says_hello(client)
        with tls_client(server, certs, certs.client_cert) as client:
            assert says_hello(client)
        assert "Traceback" not in server.stderr


@pytest.fixture
def renewable(
    serve: Start, mode: Sequence[str], certs: Certificates, tmp_path: Path
) -> tuple[Start, Path]:
    """A server, and its key with the certificate in one file, which may be changed."""
    shutil.copy(certs.server_bundle, bundle := tmp_path / "bundle.pem")
    return partial(serve, *LOCALHOST, "--cert-file", bundle, *mode), bundle


def serial(client: ssl.SSLSocket) -> object:
    certificate = client.getpeercert()
    assert certificate
    return certificate["serialNumber"]


def test_certificates_are_read_anew_without_dropping_a_connection(
    renewable: tuple[Start, Path], certs: Certificates
) -> None:
    start, bundle = renewable
    with start() as server, tls_client(server, certs) as old:
        assert says_hello(old)
        old.sendall(MESSAGE_IN_TWO[0])

        def is_renewed() -> bool:
            with tls_client(server, certs) as new:
                assert says_hello(new)
                return serial(new) != serial(old)

        bundle.write_bytes(certs.renewed_key.read_bytes() + certs.renewed_cert.read_bytes())
        server.send(signal.SIGHUP)
        server.wait_for("SIGHUP: reloading")
        until(is_renewed, "the new certificate is not served")
        old.sendall(MESSAGE_IN_TWO[1])
        assert read(old, len(HELLO)) == HELLO


def test_a_certificate_that_cannot_be_read_changes_nothing(
    renewable: tuple[Start, Path], certs: Certificates
) -> None:
    start, bundle = renewable
    with start() as server, tls_client(server, certs) as old:
        bundle.write_text("half a certificate")
        server.send(signal.SIGHUP)
        server.wait_for(f"everything goes on as it was: TLS file {bundle} holds no certificate")
        with tls_client(server, certs) as new:
            assert says_hello(new)
            assert serial(new) == serial(old)
        assert says_hello(old)


@on_each_loop
def test_an_idle_client_that_does_not_read_does_not_hold_up_the_end(
    tls: Start, certs: Certificates
) -> None:
    with tls("--graceful-timeout", "3") as server, tls_client(server, certs) as client:
        assert says_hello(client)
        assert server.stop() == 0
        assert "aborted" not in server.stderr


# Unix sockets


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "echo.sock"


def unix_client(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(path)
    return sock


@on_each_loop
def test_a_unix_socket(serve: Start, path: Path) -> None:
    with serve("--bind", f"unix:{path}?mode=0600") as server:
        assert server.addresses == [f"unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with unix_client(str(path)) as client:
            assert says_hello(client)
        assert server.stop() == 0
    assert not path.exists()


def test_socat_talks_to_a_unix_socket(serve: Start, path: Path) -> None:
    socat = [require_program("socat", "socat"), "-t", str(PATIENCE), "-", f"UNIX-CONNECT:{path}"]
    with serve("--bind", f"unix:{path}"):
        # It ends its side when its input has ended, and reads on.
        answer = subprocess.run(socat, input=HELLO * 2, capture_output=True, timeout=PATIENCE)
    assert (answer.stdout, answer.stderr, answer.returncode) == (HELLO * 2, b"", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names exist on Linux only")
def test_an_abstract_unix_socket(serve: Start) -> None:
    name = f"pulsar-test-{os.getpid()}-{time.monotonic_ns()}"
    with serve("--bind", f"unix:@{name}") as server, unix_client(f"\0{name}") as client:
        assert server.addresses == [f"unix:@{name}"]
        assert says_hello(client)


def test_a_file_that_a_killed_server_left_is_replaced(
    serve: Start, mode: Sequence[str], path: Path
) -> None:
    bind = ("--bind", f"unix:{path}")
    with serve(*bind, *mode) as server:
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    # Of a process tree more is left, which cleans up.
    assert path.is_socket() if mode else not path.exists()
    if not mode:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    with serve(*bind, *mode), unix_client(str(path)) as client:
        assert says_hello(client)


def test_an_address_in_use_is_refused(serve: Start, path: Path) -> None:
    with serve("--bind", f"unix:{path}", *LOCALHOST, listens=2) as first:
        for bind in (f"unix:{path}", first.addresses[1]):
            second = subprocess.run(
                [sys.executable, "manage.py", "--bind", bind],
                cwd=EXAMPLES / "echo",
                env=clean_environment(),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            where = bind.removeprefix("unix:")
            assert second.stderr == (
                f"echo: error: bind {bind!r}: {where} is in use; "
                "stop what listens there or choose another address\n"
            )
            assert second.returncode == 3
        with unix_client(str(path)) as client:
            assert says_hello(client)


# Sockets that others have opened

# Puts descriptors where systemd does, and becomes the server, which keeps the process id.
LAUNCHER = """
import os, sys
count = int(sys.argv[1])
given = [os.dup2(os.dup(int(fd)), 50 + at) for at, fd in enumerate(sys.argv[2 : 2 + count])]
for at, fd in enumerate(given):
    os.dup2(fd, 3 + at)
    os.close(fd)
os.environ |= {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count :]])
"""


@pytest.fixture
def two_sockets(path: Path) -> Iterator[list[socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        yield [tcp, unix]


def test_sockets_from_systemd(two_sockets: list[socket.socket], loop_kind: str, path: Path) -> None:
    descriptors = [sock.fileno() for sock in two_sockets]
    with ServerProcess(
        *("-c", LAUNCHER, str(len(descriptors)), *map(str, descriptors)),
        *("manage.py", "--bind", "systemd:", "--event-loop", loop_kind),
        cwd=EXAMPLES / "echo",
        pass_fds=descriptors,
        listens=2,
    ) as server:
        assert server.addresses[1] == f"unix:{path}"
        with connect(two_sockets[0].getsockname()) as one, unix_client(str(path)) as other:
            assert says_hello(one)
            assert says_hello(other)
        assert server.stop() == 0
    # The file is systemd's, and connections wait there for the next server.
    with unix_client(str(path)):
        pass


def test_sockets_by_their_descriptors(serve: Start, two_sockets: list[socket.socket]) -> None:
    binds = [f"fd://{sock.fileno()}" for sock in two_sockets]
    options = [word for bind in binds for word in ("--bind", bind)]
    fds = [sock.fileno() for sock in two_sockets]
    # A connection that came before the server did is in the queue.
    with connect(two_sockets[0].getsockname()) as early:
        early.sendall(HELLO)
        with serve(*options, pass_fds=fds, listens=2):
            assert read(early, len(HELLO)) == HELLO
            with unix_client(two_sockets[1].getsockname()) as client:
                assert says_hello(client)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_several_addresses(tls: Start, certs: Certificates, path: Path) -> None:
    more = ("--bind", "[::1]:0", "--bind", f"unix:{path}?tls=off", "--bind", ":0?tls=off")
    with tls(*more, listens=5) as server:
        ipv4, ipv6, unix, any_ipv4, any_ipv6 = server.addresses
        assert re.fullmatch(r"127\.0\.0\.1:\d+", ipv4)
        assert re.fullmatch(r"\[::1\]:\d+", ipv6)
        assert unix == f"unix:{path}"
        assert any_ipv4.replace("0.0.0.0", "[::]") == any_ipv6
        assert server.stderr.count(" (TLS)") == 2
        port = int(any_ipv6.rpartition(":")[2])
        for address in (("127.0.0.1", port), ("::1", port)):
            with connect(address) as client:
                assert says_hello(client)
        with unix_client(str(path)) as client:
            assert says_hello(client)
        with tls_client(server, certs) as client:
            assert says_hello(client)
        address = ("::1", int(ipv6.rpartition(":")[2]))
        with tls_client(server, certs, address=address) as client:
            assert says_hello(client)


# Signals


@pytest.fixture
def half_a_message(
    manage: Start, mode: Sequence[str]
) -> Iterator[tuple[ServerProcess, socket.socket]]:
    """A server in the middle of a request, and its client."""
    loop_kind = "asyncio" if mode else "uvloop"
    with (
        manage(*LOCALHOST, "--event-loop", loop_kind, *mode) as server,
        connect(server.address) as client,
    ):
        assert says_hello(client)
        client.sendall(MESSAGE_IN_TWO[0])
        yield server, client


def is_refused(address: tuple[str, int]) -> bool:
    try:
        # One that is not answered is lost with the queue, or kept out of it: it tries again.
        socket.create_connection(address, 0.5).close()
    except ConnectionRefusedError:
        return True
    except (TimeoutError, ConnectionResetError):
        pass
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_before_the_end(
    half_a_message: tuple[ServerProcess, socket.socket], number: signal.Signals
) -> None:
    server, client = half_a_message
    server.send(number)
    server.wait_for(f"{number.name}: stopping gracefully")
    until(lambda: is_refused(server.address), "the server still accepts connections")
    client.sendall(MESSAGE_IN_TWO[1])
    assert read_to_the_end(client) == HELLO
    assert server.wait() == 0
    assert "echo has stopped" in server.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    half_a_message: tuple[ServerProcess, socket.socket], number: signal.Signals
) -> None:
    server, client = half_a_message
    server.send(number)
    server.wait_for(f"{number.name}: stopping gracefully")
    server.send(number)
    server.wait_for(f"{number.name} again: stopping at once")
    assert_cut_off(client)
    assert server.wait() == 0


def test_quit_ends_at_once(half_a_message: tuple[ServerProcess, socket.socket]) -> None:
    server, client = half_a_message
    server.send(signal.SIGQUIT)
    server.wait_for("SIGQUIT: stopping at once")
    assert_cut_off(client)
    assert server.wait() == 0


def assert_cut_off(client: socket.socket) -> None:
    try:
        assert read_to_the_end(client) == b""
    except ConnectionResetError:
        pass


def test_the_graceful_timeout_ends_what_does_not_end(manage: Start, mode: Sequence[str]) -> None:
    with (
        manage(*LOCALHOST, "--graceful-timeout", "0.3", *mode) as server,
        connect(server.address) as client,
    ):
        client.sendall(MESSAGE_IN_TWO[0])
        server.send(signal.SIGTERM)
        assert_cut_off(client)
        assert server.wait() == 0
        assert "1 connections aborted" in server.stderr


TOO_LONG = b"x" * (64 * 1024 + 10)


def test_a_reload_takes_the_new_log_level(
    manage: Start, mode: Sequence[str], tmp_path: Path
) -> None:
    settings = tmp_path / "pulsar.toml"
    settings.write_text('log-level = "info"\n')
    with manage("--config", settings, *LOCALHOST, *mode) as server:
        first = server.below

        def refuse_a_frame() -> None:
            with connect(server.address) as client:
                client.sendall(TOO_LONG)
                assert read_to_the_end(client) == b""

        refuse_a_frame()
        server.wait_for("[INFO] connection from ")
        settings.write_text('log-level = "warning"\nprocess-name = "two"\n')
        server.send(signal.SIGHUP)
        server.wait_for("[WARNING] these settings have changed and need a restart: process_name")
        # Those who still have the old level may have taken a connection.
        until(lambda: not first & server.below, "the old processes do not end")
        refuse_a_frame()
        assert server.stop() == 0
        assert server.stderr.count("[INFO] connection from ") == 1
        assert "stopping gracefully" not in server.stderr  # of level info, too


# A single process, and what is around it


@pytest.fixture
def alone(manage: Start) -> Start:
    return partial(manage, *LOCALHOST, "--workers", "0")


def test_a_single_process_has_a_pid_file(alone: Start, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with alone("--pidfile", pidfile) as server:
        assert int(pidfile.read_text()) == server.process.pid
        second = subprocess.run(
            [sys.executable, "manage.py", *LOCALHOST, "--workers", "0", "--pidfile", pidfile],
            cwd=EXAMPLES / "echo",
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        owner = f"belongs to process {server.process.pid}, which is running"
        assert (owner in second.stderr, second.returncode) == (True, 3)
        assert server.stop() == 0
    assert not pidfile.exists()


def test_a_single_process_opens_its_log_anew(alone: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with alone("--log-file", log, listens=0) as server:
        until(lambda: log.exists() and " serves on " in log.read_text(), "it does not serve")
        log.rename(tmp_path / "log.1")
        server.send(signal.SIGUSR1)
        until(lambda: log.exists() and "SIGUSR1: log files" in log.read_text(), "no new log")
        assert server.stop() == 0
        assert server.stderr == ""
    assert log.read_text().endswith("echo has stopped\n")


def test_a_single_process_survives_signals_of_the_tree(alone: Start) -> None:
    with alone() as server:
        for number in (signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
            server.send(number)
            server.wait_for(f"{number.name}: there are no workers")
        with connect(server.address) as client:
            assert says_hello(client)
        assert server.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_single_process_becomes_its_user_when_it_has_bound(alone: Start, path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    # Where nobody else could make a file.
    with alone("--bind", f"unix:{path}", "--user", "nobody", listens=2) as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        for name, number in (("Uid", nobody.pw_uid), ("Gid", nobody.pw_gid)):
            assert f"\n{name}:" + f"\t{number}" * 4 + "\n" in status
        with connect(server.address) as client:
            assert says_hello(client)
        with unix_client(str(path)) as client:
            assert says_hello(client)
        assert server.stop() == 0
