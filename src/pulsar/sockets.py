"""Listening sockets: a bind becomes the bound sockets that serve it.

Owns: opening, adopting and clearing up listening sockets, and the sentence an
operator reads when that fails; the descriptor number at which accepting pauses.
Leaves: the grammar of addresses to ``pulsar.net``, accepting and reading to the
servers, TLS to ``pulsar.tls``. There is no event loop here.
"""

import errno
import os
import socket
import stat
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias

from pulsar.errors import ImproperlyConfigured
from pulsar.net import Bind, format_address

if sys.platform != "win32":
    import grp
    import pwd
    import resource

_Target: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]

# How often port 0 is tried until every family has the same number free.
_PORT_ATTEMPTS = 20
# What the kernel says of an IPv6 address when the host has no IPv6.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
# The size of sun_path less its terminator.
_MAX_UNIX_PATH = 107 if sys.platform == "linux" else 103
_SYSTEMD_FIRST_FD = 3
_SYSTEMD_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_TYPE_NAMES = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram"}


class _RefusedError(Exception):
    """Why a bind cannot be opened, where no ``OSError`` says it."""


def open_sockets(
    bind: Bind,
    *,
    type: socket.SocketKind = socket.SOCK_STREAM,
    backlog: int = 2048,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Open every socket of ``bind``: bound, non-blocking, not inheritable.

    ``type`` is what the server speaks; stream sockets come listening with
    ``backlog``. The result has one socket per address: two for ``:PORT``, as many
    as a host name has addresses, as many as systemd passes. An IPv6 address
    that this machine lacks is left out while another remains. All addresses of
    one bind get the same port number, also when the system chooses it. IPv6
    sockets take IPv6 only.

    ``reuse_port`` opens TCP and UDP sockets with ``SO_REUSEPORT``: call again,
    with the port now known, for the next socket of the group. Other schemes
    have one socket for everybody and take no notice.

    The descriptors of ``fd://`` and ``systemd:`` are taken over, not duplicated:
    a forgotten original would keep the port open, with nobody to accept, after
    ours is closed. They listen afterwards, whether they did before or not.

    The file of a Unix socket is removed when the socket is closed.

    It opens all or, raising ``ImproperlyConfigured``, none.
    """
    try:
        if bind.type not in (None, type):
            raise _RefusedError(f"the server needs a {_TYPE_NAMES[type]} socket")
        if bind.proxy_protocol and type != socket.SOCK_STREAM:
            raise _RefusedError("the PROXY protocol is for streams, not for datagrams")
        match bind.scheme:
            case "unix":
                return [_open_unix(bind, backlog)]
            case "fd":
                return [_adopt(bind.fd, type, backlog)]
            case "systemd":
                return _adopt_from_systemd(type, backlog)
            case _:
                return _open_inet(bind, type, backlog, reuse_port)
    except _RefusedError as refused:
        raise ImproperlyConfigured(f"bind {str(bind)!r}: {refused}") from refused.__cause__
    except OSError as error:
        raise ImproperlyConfigured(f"bind {str(bind)!r}: {_explain(error, bind)}") from error


def close_sockets(sockets: Iterable[socket.socket]) -> None:
    """Close ``sockets``, whether they are open or not; Unix sockets remove their files."""
    for sock in sockets:
        sock.close()


def bound_address(sock: socket.socket) -> str:
    """Show people where ``sock`` is bound, as ``127.0.0.1:8060``."""
    return format_address(sock.getsockname())


def descriptor_ceiling() -> int:
    """The descriptor number from which on no more connections should be accepted.

    It lies below the limit of open files (its soft value, now) by a reserve
    for everything else that a process opens: log files, resolvers, user code.
    """
    if sys.platform == "win32":
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(0, limit - _descriptor_reserve(limit))


def _descriptor_reserve(limit: int) -> int:
    return max(8, min(64, limit // 16))


def lowest_free_descriptor(sock: socket.socket) -> int:
    """The number that the next descriptor will have: at least that many are open.

    :param sock: any open socket, to make a duplicate of

    Raises ``OSError`` when there is none left.
    """
    duplicate = os.dup(sock.fileno())
    os.close(duplicate)
    return duplicate


def has_spare_descriptors(sock: socket.socket, more: int = 0) -> bool:
    """True when the reserve of ``descriptor_ceiling`` and ``more`` descriptors are free.

    Numbers do not tell: those that were closed leave holes. So they are opened, as
    duplicates of ``sock``, and closed again.
    """
    if sys.platform == "win32":
        return True
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    duplicates: list[int] = []
    try:
        for _ in range(_descriptor_reserve(limit) + more):
            duplicates.append(os.dup(sock.fileno()))  # noqa: PERF401 - what was opened is closed
    except OSError:
        return False
    finally:
        for duplicate in duplicates:
            os.close(duplicate)
    return True


class UnixListener(socket.socket):
    """A Unix socket that takes its file along when it is closed.

    Only if it is still the same file: the path may belong to the next server by
    then. And only in the process that made it: a worker that closes what it
    inherited leaves the path to the others. ``detach`` leaves it, too.
    """

    _file: tuple[str, int, int, int] | None = None

    def claim(self, path: str) -> None:
        """Remember that ``path`` is the file of this socket, just bound."""
        status = os.lstat(path)
        self._file = (path, status.st_dev, status.st_ino, os.getpid())

    def close(self) -> None:
        """Close; a path that is gone, replaced or out of reach is left as it is."""
        self.remove_file()
        super().close()

    def remove_file(self) -> None:
        """Let nobody connect any more; who is connected, or queued, stays."""
        if self._file:
            path, device, inode, process = self._file
            self._file = None
            # While the socket is open nothing else can have got its inode.
            with suppress(OSError):
                status = os.lstat(path)
                if (status.st_dev, status.st_ino, os.getpid()) == (device, inode, process):
                    Path(path).unlink()


# TCP and UDP


def _open_inet(
    bind: Bind, type: socket.SocketKind, backlog: int, reuse_port: bool
) -> list[socket.socket]:
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise _RefusedError("this system has no SO_REUSEPORT")
    targets = _resolve(bind, type)
    attempts = 1 if bind.port else _PORT_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _open_targets(targets, bind.port, type, backlog, reuse_port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not attempts:
                raise


def _resolve(bind: Bind, type: socket.SocketKind) -> list[_Target]:
    if not bind.host:
        any_ipv4: _Target = (socket.AF_INET, ("0.0.0.0", bind.port))  # noqa: S104
        return [any_ipv4, (socket.AF_INET6, ("::", bind.port, 0, 0))]
    try:
        found = socket.getaddrinfo(bind.host, bind.port, type=type, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a valid name"
        raise _RefusedError(f"host {bind.host!r} is not known here ({why})") from error
    # A hosts file may list an address twice.
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _open_targets(
    targets: list[_Target], port: int, type: socket.SocketKind, backlog: int, reuse_port: bool
) -> list[socket.socket]:
    opened: list[socket.socket] = []
    skipped: OSError | None = None
    with ExitStack() as stack:
        for family, (host, _, *scope) in targets:
            try:
                sock = _listen_inet(family, type, (host, port, *scope), backlog, reuse_port)
            except OSError as error:
                error.filename = format_address((host, port))
                if family == socket.AF_INET6 and error.errno in _NO_IPV6:
                    skipped = error
                    continue
                raise
            opened.append(stack.enter_context(sock))
            port = sock.getsockname()[1]
        if skipped and not opened:
            raise skipped
        stack.pop_all()
    return opened


def _listen_inet(
    family: socket.AddressFamily,
    type: socket.SocketKind,
    address: tuple[Any, ...],
    backlog: int,
    reuse_port: bool,
) -> socket.socket:
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family, type))
        sock.setblocking(False)
        # For TCP it lets a restart bind while old connections linger in TIME_WAIT. For
        # UDP, and for TCP on Windows, it would let two servers share one port.
        if type == socket.SOCK_STREAM and sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        if type == socket.SOCK_STREAM:
            sock.listen(backlog)
        stack.pop_all()
    return sock


# Unix


def _open_unix(bind: Bind, backlog: int) -> UnixListener:
    if sys.platform == "win32":
        raise _RefusedError("this system has no Unix sockets")
    # An absolute name stays true when the process changes its directory.
    path = f"\0{bind.path[1:]}" if bind.abstract else str(Path(bind.path).absolute())
    size = len(os.fsencode(path))
    if size > _MAX_UNIX_PATH:
        raise _RefusedError(f"the path has {size} bytes and the system takes {_MAX_UNIX_PATH}")
    uid, gid = _owner(bind)
    with ExitStack() as stack:
        try:
            if not bind.abstract:
                with suppress(FileNotFoundError):
                    _clear_stale(path)
            sock = stack.enter_context(UnixListener(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.setblocking(False)
            sock.bind(path)
            if not bind.abstract:
                sock.claim(path)
                # Until it listens every connect is refused, so nobody slips in by the
                # wider permissions of the new file. A umask around the bind would do as
                # well, but all threads share it.
                _set_access(path, bind.mode, uid, gid)
            sock.listen(backlog)
        except OSError as error:
            error.filename = bind.path if bind.abstract else path
            raise
        stack.pop_all()
    return sock


def _owner(bind: Bind) -> tuple[int, int]:
    """User and group ids of the file, -1 for what stays as it is."""
    uid = gid = -1
    try:
        if bind.user:
            uid = int(bind.user) if bind.user.isdecimal() else pwd.getpwnam(bind.user).pw_uid
        if bind.group:
            gid = int(bind.group) if bind.group.isdecimal() else grp.getgrnam(bind.group).gr_gid
    except KeyError:
        what = f"user {bind.user!r}" if bind.user and uid == -1 else f"group {bind.group!r}"
        raise _RefusedError(f"there is no {what}") from None
    return uid, gid


def _clear_stale(path: str) -> None:
    """Remove the file of a server that is gone; refuse any other file.

    A server between its bind and its listen looks gone, too: of two that start
    at one path within microseconds, the later one takes it.
    """
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise _RefusedError(f"{path} is there and is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A live server whose queue is full must not hold us up.
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    match answer:
        case errno.ECONNREFUSED:
            Path(path).unlink()
        case 0 | errno.EAGAIN | errno.EPROTOTYPE:  # the last: it takes datagrams
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        case _:
            raise OSError(answer, os.strerror(answer))


def _set_access(path: str, mode: int | None, uid: int, gid: int) -> None:
    if mode is not None:
        Path(path).chmod(mode)
    if uid != -1 or gid != -1:
        try:
            os.chown(path, uid, gid, follow_symlinks=False)
        except PermissionError as error:
            raise _RefusedError("only root may give a socket to another user or group") from error


# Inherited descriptors


def _adopt(fd: int, type: socket.SocketKind, backlog: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise _RefusedError(f"descriptor {fd} is no open socket ({error.strerror})") from error
    try:
        why = _why_unfit(sock, type)
        if why:
            raise _RefusedError(f"descriptor {fd} {why}")
        sock.set_inheritable(False)
        sock.setblocking(False)
        if type == socket.SOCK_STREAM:
            sock.listen(backlog)
    except BaseException as error:
        # What is refused stays open: it is still its giver's.
        sock.detach()
        if isinstance(error, OSError):
            error.filename = f"descriptor {fd}"
        raise
    return sock


def _why_unfit(sock: socket.socket, type: socket.SocketKind) -> str:
    """Say what keeps an inherited socket from being served, ``""`` if nothing does."""
    name = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        bound = name[1] != 0
    elif sys.platform != "win32" and sock.family == socket.AF_UNIX:
        bound = bool(name)
    else:
        return "is neither an IP nor a Unix socket"
    if sock.type != type:
        is_type = _TYPE_NAMES.get(sock.type, "raw")
        return f"is a {is_type} socket and the server needs a {_TYPE_NAMES[type]} socket"
    if not bound:
        return "is not bound to an address"
    with suppress(OSError):
        sock.getpeername()
        return "is a connection, not a socket that listens"
    return ""


def _adopt_from_systemd(type: socket.SocketKind, backlog: int) -> list[socket.socket]:
    pid, count = os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", "")
    if not count.isdecimal() or int(count) == 0:
        raise _RefusedError("systemd has passed no sockets (LISTEN_FDS is not set)")
    if pid != str(os.getpid()):
        raise _RefusedError(f"systemd has passed its sockets to process {pid or '?'}, not to us")
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(_adopt(fd, type, backlog))
            for fd in range(_SYSTEMD_FIRST_FD, _SYSTEMD_FIRST_FD + int(count))
        ]
        stack.pop_all()
    # A program that we start must not think that they are its own.
    for name in _SYSTEMD_VARIABLES:
        os.environ.pop(name, None)
    return sockets


def _explain(error: OSError, bind: Bind) -> str:
    """Say for the operator what went wrong at ``error.filename``, and what helps."""
    where = error.filename
    match error.errno:
        case errno.EADDRINUSE:
            return f"{where} is in use; stop what listens there or choose another address"
        case errno.EACCES | errno.EPERM if bind.scheme == "unix":
            return f"no permission to make or replace {where}; choose a directory of your own"
        case errno.EACCES | errno.EPERM:
            return (
                f"no permission to listen at {where}; choose a port from 1024 up, or give "
                "the process CAP_NET_BIND_SERVICE"
            )
        case errno.ENOENT | errno.ENOTDIR:
            return f"the directory of {where} does not exist; make it first"
        case errno.EADDRNOTAVAIL:
            return f"{where} is no address of this machine; ':PORT' listens on all that it has"
        case errno.EAFNOSUPPORT:
            return f"this machine has no IPv6, so nothing can listen at {where}"
        case _:
            return f"cannot listen at {where} ({error.strerror})"
