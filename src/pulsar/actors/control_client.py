"""The control socket as a client sees it: finding servers and talking to them, blocking.

Owns: ``discover``, ``connect`` and ``ControlClient``.
Leaves: what is said to ``control_messages``, what people type and read to ``console``.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from ..errors import ConnectionClosed, ControlError
from .control_messages import LINUX, MAX_ANSWER, Answer, Peer, Progress, render_line

__all__ = ["Address", "ControlClient", "connect", "discover"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a control socket is, and whose it must be: None where the name does not say."""

    path: str
    uid: int | None = None
    pid: int | None = None

    def __str__(self) -> str:
        return f"@{self.path[1:]}" if self.path.startswith("\0") else self.path


# What Linux says of its Unix sockets: Num RefCount Protocol Flags Type St Inode Path.
_TABLE = Path("/proc/net/unix")
# A stream socket (0001) that listens (__SO_ACCEPTCON); @ is how the table writes a NUL.
_LISTENING = re.compile(
    r"^\S+ \S+ \S+ 00010000 0001 \S+ +\d+ @(pulsar/(\d{1,10})/(\d{1,10}))$", re.MULTILINE
)


def discover() -> list[Address]:
    """The control sockets of this user's servers, by process id; of all servers for root.

    Names only: anybody may have taken them, which ``connect`` finds out. Nothing is
    found where the system has no table of abstract names.
    """
    try:
        table = _TABLE.read_text(errors="replace")
    except OSError:
        return []
    me = os.geteuid()
    found = {
        Address(f"\0{name}", int(uid), int(pid)) for name, uid, pid in _LISTENING.findall(table)
    }
    return sorted(
        (address for address in found if me in (0, address.uid)),
        key=lambda address: (address.pid or 0, address.uid or 0),
    )


def connect(address: Address, timeout: float) -> ControlClient:
    """Connect within ``timeout`` seconds to the server at ``address``.

    Raises ``ControlError`` when somebody else is there than the address says, or
    neither root nor this user; ``OSError`` when nobody is, or does not accept.
    """
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)
        while error := sock.connect_ex(address.path):
            # The server's queue is full; a Unix socket does not wait for room by itself.
            if error != errno.EAGAIN:
                raise OSError(error, os.strerror(error))
            if time.monotonic() > deadline:
                raise TimeoutError(f"it has not accepted within {timeout:g} seconds")
            time.sleep(0.02)
        peer = Peer.of(sock)
        if peer is not None and not _is_trusted(peer, address):
            raise ControlError(f"the control socket {address} is held by {peer}")
        stack.pop_all()
    return ControlClient(sock, address, peer)


def _is_trusted(peer: Peer, address: Address) -> bool:
    if address.pid not in (None, peer.pid):
        return False
    me = os.geteuid()
    if address.uid is not None:
        return peer.uid in (0, address.uid)
    # To a path that root names itself, anybody's server may listen.
    return me == 0 or peer.uid in (0, me)


class ControlClient:
    """A connection to a server, made by ``connect``; a context manager that closes it.

    ``pid`` is the server's process, None where the system cannot tell.
    """

    def __init__(self, sock: socket.socket, address: Address, peer: Peer | None) -> None:
        self.address = address
        self.pid = peer.pid if peer is not None else None
        self._sock = sock
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what the server was asked for goes on."""
        self._sock.close()

    def request(
        self,
        command: str,
        *,
        timeout: float,
        progress: Progress | None = None,
        **arguments: object,
    ) -> Any:
        """The result of ``command``; ``progress`` gets the lines that come before it.

        Raises ``ControlError`` with the server's reason when it says no,
        ``ConnectionClosed`` when it goes away, ``TimeoutError`` when the result does
        not come within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        # A server that hangs up says why before it does.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._wait(deadline)
            self._sock.sendall(render_line({"command": command, **arguments}))
        while line := self._read_line(deadline):
            try:
                answer = msgspec.json.decode(line, type=Answer)
            except (ValueError, RecursionError) as exc:
                raise ControlError(f"the server's answer is not understood: {exc}") from exc
            if answer.progress is not None:
                if progress is not None:
                    progress(answer.progress)
            elif answer.ok:
                return answer.result
            else:
                raise ControlError(answer.error)
        raise ConnectionClosed("the server has closed the connection without an answer")

    def stop(self, *, graceful: bool, timeout: float) -> bool:
        """Stop the server; True when its process has ended within ``timeout`` seconds.

        Raises ``ControlError`` when the server says no.
        """
        deadline = time.monotonic() + timeout
        with ExitStack() as stack:
            # Before it ends: afterwards its number may be another's.
            process = self._watch_process()
            if process is not None:
                stack.callback(os.close, process)
            try:
                with suppress(ConnectionClosed):
                    self.request("stop", timeout=timeout, graceful=graceful)
                if process is not None:
                    poller = select.poll()
                    poller.register(process, select.POLLIN)
                    return bool(poller.poll(_left(deadline) * 1000))
                while self._read_line(deadline):
                    pass
            except TimeoutError:
                return False
        return True

    def _watch_process(self) -> int | None:
        """A descriptor that is readable when the server's process has ended, if there is one."""
        if not LINUX or not self.pid:
            return None
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            return None  # an old kernel, a sandbox: the end of the connection has to do

    def _read_line(self, deadline: float) -> bytes:
        """The next line; empty when the server has closed the connection."""
        while b"\n" not in self._received:
            if len(self._received) > MAX_ANSWER:
                raise ControlError(f"the server's answer is longer than {MAX_ANSWER} bytes")
            self._wait(deadline)
            try:
                data = self._sock.recv(256 * 1024)
            except ConnectionResetError:
                data = b""
            if not data:
                return b""
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line + b"\n"

    def _wait(self, deadline: float) -> None:
        left = _left(deadline)
        if not left:
            raise TimeoutError("the server has not answered in time")
        self._sock.settimeout(left)


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
