"""Listening sockets, opened for real: what comes out, what is refused, what is left behind."""

import errno
import json
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pulsar import sockets
from pulsar.errors import ImproperlyConfigured
from pulsar.net import format_address, parse_bind
from pulsar.sockets import bound_address, close_sockets, descriptor_ceiling, open_sockets
from tests.support.privileges import unprivileged


def host_has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def first_low_port() -> int:
    """The first port that ordinary users may bind on this machine."""
    setting = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    return int(setting.read_text()) if setting.exists() else 1024


linux = pytest.mark.skipif(sys.platform != "linux", reason="this is a matter of Linux")
ipv6 = pytest.mark.skipif(not host_has_ipv6(), reason="this machine has no IPv6")

DGRAM = socket.SOCK_DGRAM


@contextmanager
def opening(text: str, **options: Any) -> Iterator[list[socket.socket]]:
    """The sockets of a bind text, closed behind the block."""
    opened = open_sockets(parse_bind(text), **options)
    try:
        yield opened
    finally:
        close_sockets(opened)


def refusal(text: str, **options: Any) -> str:
    """The sentence with which a bind text is refused, less its beginning."""
    bind = parse_bind(text)
    with pytest.raises(ImproperlyConfigured) as caught:
        open_sockets(bind, **options)
    message = str(caught.value)
    start = f"bind {str(bind)!r}: "
    assert message.startswith(start)
    assert "\n" not in message
    assert "\0" not in message
    assert "None" not in message
    return message.removeprefix(start)


def can_connect(sock: socket.socket) -> bool:
    with socket.socket(sock.family) as client:
        client.connect(sock.getsockname())
        sock.accept()[0].close()
    return True


# TCP and UDP


def test_a_stream_socket_listens() -> None:
    with opening("127.0.0.1:0") as [sock]:
        assert sock.family == socket.AF_INET
        assert sock.type == socket.SOCK_STREAM
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert can_connect(sock)


@linux
@pytest.mark.parametrize("backlog", [7, 300])
def test_the_backlog_is_the_callers(backlog: int) -> None:
    with opening("127.0.0.1:0", backlog=backlog) as [sock]:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        # For a listening socket Linux reports the backlog as tcpi_sacked.
        assert struct.unpack_from("I", info, 28) == (backlog,)


def test_a_datagram_socket_receives() -> None:
    for text in ("127.0.0.1:0", "udp://127.0.0.1:0"):
        with opening(text, type=DGRAM) as [sock], socket.socket(type=DGRAM) as client:
            assert sock.type == DGRAM
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            client.sendto(b"ping", sock.getsockname())
            assert sock.recv(10) == b"ping"


@ipv6
@pytest.mark.parametrize("type", [socket.SOCK_STREAM, DGRAM])
@pytest.mark.parametrize("text", [":0", "localhost:0"])
def test_all_families_share_one_free_port(
    text: str, type: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text.startswith("localhost"):
        resolve_to(monkeypatch, "127.0.0.1", "::1", "127.0.0.1")
    with opening(text, type=type) as [ipv4, ipv6]:
        assert (ipv4.family, ipv6.family) == (socket.AF_INET, socket.AF_INET6)
        assert ipv4.getsockname()[1] == ipv6.getsockname()[1] != 0
        assert ipv6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@ipv6
def test_a_port_alone_is_reached_by_both_families() -> None:
    with opening(":0") as [ipv4, ipv6]:
        assert ipv4.getsockname()[0] == "0.0.0.0"
        assert ipv6.getsockname()[0] == "::"
        assert can_connect(ipv4)
        assert can_connect(ipv6)


@ipv6
def test_an_ipv6_address_listens() -> None:
    with opening("[::1]:0") as [sock]:
        assert can_connect(sock)
        assert bound_address(sock) == f"[::1]:{sock.getsockname()[1]}"


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every host name have these addresses."""

    def getaddrinfo(_: str, port: int, **options: Any) -> list[Any]:
        return [
            (socket.AF_INET6, options["type"], 0, "", (host, port, 0, 0))
            if ":" in host
            else (socket.AF_INET, options["type"], 0, "", (host, port))
            for host in hosts
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def fail_ipv6(monkeypatch: pytest.MonkeyPatch, code: int, times: int) -> list[int]:
    """Let opening an IPv6 address fail some times; the list gets the ports tried."""
    tried: list[int] = []

    def listen(family: int, type: int, address: Any, *options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            tried.append(address[1])
            if len(tried) <= times:
                raise OSError(code, os.strerror(code))
        return listen_inet(family, type, address, *options)

    listen_inet = sockets._listen_inet
    monkeypatch.setattr(sockets, "_listen_inet", listen)
    return tried


@ipv6
def test_a_free_port_is_tried_again_until_all_families_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = fail_ipv6(monkeypatch, errno.EADDRINUSE, times=3)
    with opening(":0") as [ipv4, ipv6]:
        assert ipv4.getsockname()[1] == ipv6.getsockname()[1] == tried[-1]
        assert len(tried) == 4


def test_a_free_port_is_not_sought_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = fail_ipv6(monkeypatch, errno.EADDRINUSE, times=1000)
    message = refusal(":0")
    assert message.startswith(f"[::]:{tried[-1]} is in use")
    assert 1 < len(tried) < 100


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_host_without_ipv6_listens_on_the_rest(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_ipv6(monkeypatch, code, times=1000)
    with opening(":0") as [sock]:
        assert sock.family == socket.AF_INET
        assert can_connect(sock)
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    with opening("localhost:0") as [sock]:
        assert sock.family == socket.AF_INET


def test_an_ipv6_address_alone_needs_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_ipv6(monkeypatch, errno.EAFNOSUPPORT, times=1000)
    assert refusal("[::1]:80") == "this machine has no IPv6, so nothing can listen at [::1]:80"
    resolve_to(monkeypatch, "::1", "::2")
    assert "nothing can listen at [::2]:80" in refusal("localhost:80")


@pytest.mark.parametrize("type", [socket.SOCK_STREAM, DGRAM])
def test_a_port_in_use_is_refused(type: socket.SocketKind) -> None:
    with opening("127.0.0.1:0", type=type) as [sock]:
        address = bound_address(sock)
        message = refusal(address, type=type)
    assert message == f"{address} is in use; stop what listens there or choose another address"


@ipv6
def test_all_addresses_are_opened_or_none() -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refusal(f":{port}").startswith(f"[::]:{port} is in use")
        # The IPv4 half was closed again: a leaked descriptor would fail every test.


def test_a_port_can_be_bound_again_while_its_old_connections_linger() -> None:
    with opening("127.0.0.1:0") as [sock]:
        address = bound_address(sock)
        with socket.create_connection(sock.getsockname()) as client:
            # Whoever closes first keeps the port in TIME_WAIT.
            sock.accept()[0].close()
            assert client.recv(1) == b""
    with opening(address) as [sock]:
        assert can_connect(sock)


@pytest.mark.skipif(first_low_port() < 2, reason="every user may bind every port here")
def test_a_low_port_needs_privileges() -> None:
    port = min(first_low_port() - 1, 1023)
    with unprivileged():
        message = refusal(f"127.0.0.1:{port}")
    assert message == (
        f"no permission to listen at 127.0.0.1:{port}; choose a port from 1024 up, or give the "
        "process CAP_NET_BIND_SERVICE"
    )


def test_an_address_of_another_machine_is_refused() -> None:
    # TEST-NET-1 belongs to nobody.
    assert refusal("192.0.2.1:8060") == (
        "192.0.2.1:8060 is no address of this machine; ':PORT' listens on all that it has"
    )


def test_an_unknown_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert refusal("nowhere.invalid:80") == (
        "host 'nowhere.invalid' is not known here (Name or service not known)"
    )


def test_a_host_name_that_cannot_be_one_is_refused() -> None:
    name = "x" * 300
    assert refusal(f"{name}:80").startswith(f"host '{name}' is not known here (")


def test_running_out_of_descriptors_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(sockets, "_listen_inet", listen)
    assert refusal("127.0.0.1:80") == "cannot listen at 127.0.0.1:80 (Too many open files)"


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="there is no SO_REUSEPORT here")
@pytest.mark.parametrize("type", [socket.SOCK_STREAM, DGRAM])
def test_a_group_of_sockets_shares_a_port(type: socket.SocketKind) -> None:
    bind = parse_bind("127.0.0.1:0")
    with ExitStack() as stack:
        [first] = open_sockets(bind, type=type, reuse_port=True)
        stack.enter_context(first)
        bind = replace(bind, port=first.getsockname()[1])
        [second] = open_sockets(bind, type=type, reuse_port=True)
        stack.enter_context(second)
        assert first.getsockname() == second.getsockname()
        assert "is in use" in refusal(str(bind), type=type)


def test_a_group_needs_the_systems_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    assert refusal("127.0.0.1:0", reuse_port=True) == "this system has no SO_REUSEPORT"


@pytest.mark.parametrize(
    ("text", "type", "wanted"),
    [
        ("udp://127.0.0.1:0", socket.SOCK_STREAM, "stream"),
        ("tcp://127.0.0.1:0", DGRAM, "datagram"),
        ("unix:x.sock", DGRAM, "datagram"),
    ],
)
def test_a_bind_and_its_server_speak_the_same_transport(
    text: str, type: socket.SocketKind, wanted: str
) -> None:
    assert refusal(text, type=type) == f"the server needs a {wanted} socket"


# Unix


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def foreign_socket(path: Path, type: socket.SocketKind) -> Iterator[socket.socket]:
    """A socket file as another program makes one; it stays when the block ends."""
    with socket.socket(socket.AF_UNIX, type) as sock:
        sock.bind(str(path))
        if type == socket.SOCK_STREAM:
            sock.listen(0)
        yield sock


def test_a_unix_socket_listens(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with opening(f"unix:{path}") as [sock]:
        assert sock.family == socket.AF_UNIX
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert can_connect(sock)
        assert bound_address(sock) == f"unix:{path}"


def test_a_relative_path_outlives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opening("unix:x.sock") as [sock]:
        monkeypatch.chdir("/")
        assert sock.getsockname() == str(tmp_path / "x.sock")
        assert can_connect(sock)
    assert not (tmp_path / "x.sock").exists()


@linux
def test_an_abstract_name_listens_and_has_no_file(tmp_path: Path) -> None:
    name = f"@{tmp_path}"
    with opening(f"unix:{name}") as [sock]:
        assert can_connect(sock)
        assert bound_address(sock) == f"unix:{name}"
        assert refusal(f"unix:{name}").startswith(f"{name} is in use")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777])
def test_the_mode_is_set_before_anybody_can_connect(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.sock"
    modes = []

    def listen(sock: socket.socket, backlog: int) -> None:
        modes.append(mode_of(path))
        with socket.socket(socket.AF_UNIX) as early, pytest.raises(ConnectionRefusedError):
            early.connect(str(path))
        socket.SocketType.listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen)
    with opening(f"unix:{path}?mode={mode:o}") as [sock]:
        assert can_connect(sock)
        assert modes == [mode] == [mode_of(path)]


def test_without_a_mode_the_umask_decides(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    umask = os.umask(0o027)
    try:
        with opening(f"unix:{path}"):
            assert mode_of(path) == 0o750
    finally:
        os.umask(umask)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_root_gives_the_socket_to_others(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with opening(f"unix:{path}?user=4321&group=8765&mode=0600"):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (4321, 8765)
        assert mode_of(path) == 0o600
    with opening(f"unix:{path}?user=nobody"):
        status = path.lstat()
        assert status.st_uid != 0
        assert status.st_gid == os.getegid()


def test_an_own_group_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with opening(f"unix:{path}?group={os.getegid()}"):
        assert path.lstat().st_gid == os.getegid()
        assert path.lstat().st_uid == os.geteuid()


def test_unknown_owners_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    assert refusal(f"unix:{path}?user=no-such") == "there is no user 'no-such'"
    assert refusal(f"unix:{path}?group=no-such") == "there is no group 'no-such'"
    assert refusal(f"unix:{path}?user={os.geteuid()}&group=no-such") == (
        "there is no group 'no-such'"
    )
    assert not path.exists()


def test_an_owner_that_cannot_be_set_leaves_no_file() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        path = Path(directory, "x.sock")
        with unprivileged():
            message = refusal(f"unix:{path}?user=0")
        assert message == "only root may give a socket to another user or group"
        assert not path.exists()


@pytest.mark.parametrize("type", [socket.SOCK_STREAM, DGRAM])
def test_the_file_of_a_dead_server_is_replaced(type: socket.SocketKind, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with foreign_socket(path, type):
        pass
    with opening(f"unix:{path}") as [sock]:
        assert can_connect(sock)


@pytest.mark.parametrize("type", [socket.SOCK_STREAM, DGRAM])
def test_a_live_server_is_left_alone(type: socket.SocketKind, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with foreign_socket(path, type):
        before = path.lstat()
        assert refusal(f"unix:{path}").startswith(f"{path} is in use; stop what listens there")
        assert path.lstat().st_ino == before.st_ino


def test_a_live_server_with_a_full_queue_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with ExitStack() as stack:
        stack.enter_context(foreign_socket(path, socket.SOCK_STREAM))
        full = False
        while not full:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            full = client.connect_ex(str(path)) == errno.EAGAIN
        assert "is in use" in refusal(f"unix:{path}")


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_not_a_socket_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to(tmp_path / "nowhere")
    before = path.lstat()
    assert refusal(f"unix:{path}") == (f"{path} is there and is not a socket; choose another path")
    assert path.lstat() == before


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.sock"
    expected = f"the directory of {path} does not exist; make it first"
    assert refusal(f"unix:{path}") == expected
    (tmp_path / "missing").write_text("a file")
    assert refusal(f"unix:{path}") == expected


def test_a_directory_of_others_is_refused() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x.sock")
        for mode in (0o000, 0o555):
            Path(directory).chmod(mode)
            with unprivileged():
                message = refusal(f"unix:{path}")
            assert message == (
                f"no permission to make or replace {path}; choose a directory of your own"
            )
        Path(directory).chmod(0o700)


def test_a_path_has_a_longest_length(tmp_path: Path) -> None:
    limit = 107 if sys.platform == "linux" else 103
    room = limit - len(str(tmp_path)) - 1
    path = tmp_path / ("x" * room)
    with opening(f"unix:{path}") as [sock]:
        assert can_connect(sock)
    assert (
        refusal(f"unix:{path}y") == f"the path has {limit + 1} bytes and the system takes {limit}"
    )
    accented = tmp_path / ("x" * (room - 1) + "é")
    assert refusal(f"unix:{accented}").startswith(f"the path has {limit + 1} bytes")


def test_a_closed_socket_takes_its_file_along(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with opening(f"unix:{path}") as [sock]:
        sock.dup().close()
        assert path.exists()
        sock.close()
        assert not path.exists()
        path.write_text("of somebody else")
    # Closed once more behind the block.
    assert path.exists()


def test_the_file_of_the_next_server_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with opening(f"unix:{path}") as [old]:
        path.unlink()
        with opening(f"unix:{path}") as [new]:
            old.close()
            assert can_connect(new)
        assert not path.exists()


def test_a_worker_leaves_the_file_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.sock"
    with opening(f"unix:{path}") as [sock]:
        monkeypatch.setattr(os, "getpid", lambda: 1)
        sock.close()
    assert path.exists()


def test_a_file_that_cannot_be_removed_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with opening(f"unix:{path}") as [sock]:
        tmp_path.chmod(0o500)
        with unprivileged():
            sock.close()
    tmp_path.chmod(0o700)
    assert sock.fileno() == -1
    assert path.exists()


# Inherited descriptors


@pytest.mark.parametrize("listens", [True, False])
def test_an_inherited_socket_is_taken_over(listens: bool) -> None:
    given = socket.socket()
    given.bind(("127.0.0.1", 0))
    if listens:
        given.listen()
    given.set_inheritable(True)
    name, number = given.getsockname(), given.detach()
    with opening(f"fd://{number}") as [sock]:
        assert sock.fileno() == number
        assert sock.getsockname() == name
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert can_connect(sock)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_inherited_sockets_may_be_unix_or_take_datagrams(tmp_path: Path) -> None:
    with foreign_socket(tmp_path / "x.sock", socket.SOCK_STREAM) as given:
        with opening(f"fd://{os.dup(given.fileno())}") as [sock]:
            assert can_connect(sock)
        assert (tmp_path / "x.sock").exists()
    with socket.socket(type=DGRAM) as given:
        given.bind(("127.0.0.1", 0))
        with opening(f"fd://{os.dup(given.fileno())}", type=DGRAM) as [sock]:
            assert sock.getsockname() == given.getsockname()


def refused_descriptor(sock: socket.socket, **options: Any) -> str:
    """Why a socket is not taken over; it must be open, and ours, afterwards."""
    number = sock.fileno()
    message = refusal(f"fd://{number}", **options)
    os.fstat(number)
    start = f"descriptor {number} "
    assert message.startswith(start)
    return message.removeprefix(start)


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        number = file.fileno()
        assert refusal(f"fd://{number}").startswith(f"descriptor {number} is no open socket (")
        os.fstat(number)
    assert refusal("fd://999999").startswith("descriptor 999999 is no open socket (Bad file")


def test_sockets_that_cannot_serve_are_refused() -> None:
    with socket.socket() as sock:
        assert refused_descriptor(sock) == "is not bound to an address"
        assert refused_descriptor(sock, type=DGRAM) == (
            "is a stream socket and the server needs a datagram socket"
        )
    with socket.socket(type=DGRAM) as sock:
        assert refused_descriptor(sock) == (
            "is a datagram socket and the server needs a stream socket"
        )
    with socket.socket(socket.AF_UNIX) as sock:
        assert refused_descriptor(sock) == "is not bound to an address"


def test_a_connection_is_refused() -> None:
    why = "is a connection, not a socket that listens"
    with (
        opening("127.0.0.1:0") as [listener],
        socket.create_connection(listener.getsockname()) as client,
    ):
        assert refused_descriptor(client) == why
        accepted, _ = listener.accept()
        with accepted:
            assert refused_descriptor(accepted) == why


@linux
def test_other_families_are_refused() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        assert refused_descriptor(sock) == "is neither an IP nor a Unix socket"


@linux
def test_an_inherited_socket_whose_port_is_taken_is_refused() -> None:
    with socket.socket() as given, socket.socket() as other:
        for sock in (given, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        given.bind(("127.0.0.1", 0))
        other.bind(given.getsockname())
        other.listen()
        assert refused_descriptor(given).startswith("is in use")


# systemd

# What systemd does between fork and exec: the sockets from 3 up, and the variables.
LAUNCH = """
import os, sys
from fcntl import F_DUPFD, fcntl
program, *numbers = sys.argv[1:]
for target, number in enumerate([fcntl(int(n), F_DUPFD, 64) for n in numbers], 3):
    os.dup2(number, target)
names = ":".join("socket" for _ in numbers)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-W", "error", "-c", program])
"""

SERVE = """
import json, os, socket, sys
from pulsar.errors import ImproperlyConfigured
from pulsar.net import parse_bind
from pulsar.sockets import bound_address, open_sockets
try:
    opened = open_sockets(parse_bind("systemd:"))
except ImproperlyConfigured as error:
    sys.exit(str(error))
report = {
    "numbers": [sock.fileno() for sock in opened],
    "addresses": [bound_address(sock) for sock in opened],
    "inheritable": [sock.get_inheritable() for sock in opened],
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
}
for sock in opened:
    sock.setblocking(True)
    connection, _ = sock.accept()
    with sock, connection:
        connection.sendall(json.dumps(report).encode())
"""


def launch(*passed: socket.socket) -> "subprocess.Popen[str]":
    numbers = [sock.fileno() for sock in passed]
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, SERVE, *map(str, numbers)],
        pass_fds=numbers,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_systemd_passes_its_sockets(tmp_path: Path) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(str(tmp_path / "x.sock"))
        unix.listen()
        with launch(tcp, unix) as process:
            for given in (tcp, unix):
                with socket.socket(given.family) as client:
                    client.settimeout(30)
                    client.connect(given.getsockname())
                    report = json.loads(client.makefile().read())
                    assert report == {
                        "numbers": [3, 4],
                        "addresses": [format_address(s.getsockname()) for s in (tcp, unix)],
                        "inheritable": [False, False],
                        "variables": [],
                    }
            _, errors = process.communicate(timeout=30)
            assert (process.returncode, errors) == (0, "")


def test_systemd_must_pass_what_the_server_needs() -> None:
    with socket.socket() as tcp, socket.socket(type=DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        with launch(tcp, udp) as process:
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.strip() == (
        "bind 'systemd:': descriptor 4 is a datagram socket and the server needs a stream socket"
    )


@pytest.mark.parametrize("count", [None, "", "0", "many", "-1"])
def test_without_systemd_there_is_nothing_to_adopt(
    count: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    if count is not None:
        monkeypatch.setenv("LISTEN_FDS", count)
    assert refusal("systemd:") == "systemd has passed no sockets (LISTEN_FDS is not set)"


@pytest.mark.parametrize(("pid", "shown"), [("1", "1"), ("", "?"), (None, "?")])
def test_sockets_for_another_process_are_not_adopted(
    pid: str | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.delenv("LISTEN_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("LISTEN_PID", pid)
    assert refusal("systemd:") == (f"systemd has passed its sockets to process {shown}, not to us")
    assert os.environ["LISTEN_FDS"] == "1"


# Descriptors


@pytest.mark.parametrize(
    ("limit", "ceiling"),
    [
        (1_000_000, 999_936),
        (1024, 960),
        (512, 480),
        (256, 240),
        (64, 56),
        (8, 0),
        (4, 0),
        (resource.RLIM_INFINITY, sys.maxsize),
    ],
)
def test_accepting_pauses_below_the_limit_of_open_files(
    limit: int, ceiling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
    assert descriptor_ceiling() == ceiling


def test_the_ceiling_is_that_of_this_process() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        assert descriptor_ceiling() == sys.maxsize
    else:
        assert descriptor_ceiling() < soft
