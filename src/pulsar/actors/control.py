"""The control socket: how ``pulsar ps``, ``reload``, ``stop`` reach a server that runs.

Owns: both ends. ``ControlServer`` runs in the arbiter's loop; ``discover``, ``connect``
and ``ControlClient`` find servers and talk to them, blocking. And what they say.
Leaves: what a command does to ``Controlled``, what people type and read to ``console``.

A Unix socket; on Linux an abstract one, whose name says whose server it is:
``@pulsar/UID/PID``. It leaves no file behind, and it has no permissions: so the kernel is
asked at both ends who the other one is (``SO_PEERCRED``). The server serves root and
its own user. The client trusts nobody who has taken a name that is not his.

One JSON object a line. A request names a command, the rest are its arguments::

    {"command": "scale", "workers": 4}

Any number of progress lines answers it, and then one line with the outcome::

    {"progress": "worker 4 has started"}
    {"ok": true, "result": null}
    {"ok": false, "error": "there is no application 'ehco'"}
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import msgspec

from ..config.setting import did_you_mean
from ..errors import ConnectionClosed, ControlError, ImproperlyConfigured, ReloadFailed
from ..net import Bind
from ..sockets import open_sockets

__all__ = [
    "Address",
    "ApplicationStatus",
    "ControlClient",
    "ControlServer",
    "Controlled",
    "ForkserverStatus",
    "ServerStatus",
    "SlotStatus",
    "connect",
    "discover",
]

logger = logging.getLogger("pulsar.server")

LINUX = sys.platform == "linux"

# The longest request, in bytes.
MAX_REQUEST = 64 * 1024
# The longest answer that a client reads, and the most that waits for one that does not.
MAX_ANSWER = 16 * 1024 * 1024
MAX_CONNECTIONS = 16
# Seconds for a request to arrive, and for its answer to be taken.
REQUEST_TIMEOUT = 10.0
ANSWER_TIMEOUT = 10.0

Progress = Callable[[str], None]


class Controlled(Protocol):
    """What a control socket controls. All of it is called in the server's loop."""

    name: str

    async def refresh(self) -> None:
        """Have the workers' figures as they are now, as far as that takes no time."""

    def status(self) -> dict[str, Any]:
        """What ``ServerStatus`` says."""

    def config(self) -> dict[str, dict[str, list[Any]]]:
        """Application -> setting -> [value, where it came from]; no secrets."""

    async def reload(self, progress: Progress) -> None:
        """Return when the next generation serves; never called twice at a time.

        ``progress`` takes a line for whoever waits, and never raises. Raises
        ``ReloadFailed`` when the old generation goes on.
        """

    async def scale(self, workers: int, application: str | None) -> None:
        """Return when ``application``, or the only one, has ``workers``.

        Raises ``ImproperlyConfigured`` for what cannot be.
        """

    def stop(self, graceful: bool = True) -> None:
        """Begin to stop; called again with False, stop at once."""


# What is said


class SlotStatus(msgspec.Struct, frozen=True):
    """The worker in one slot; what is not known of it is None.

    ``uptime`` and ``lag`` (of its loop) are in seconds, ``memory`` is in bytes.
    """

    slot: int
    pid: int | None
    state: str
    generation: int
    uptime: float | None
    connections: int | None
    requests: int | None
    lag: float | None
    memory: int | None


class ApplicationStatus(msgspec.Struct, frozen=True):
    """One application: how many workers it shall have, how many are ready."""

    name: str
    workers: int
    ready: int
    addresses: list[str]
    restarts: int
    last_failure: str | None
    slots: list[SlotStatus]


class ForkserverStatus(msgspec.Struct, frozen=True):
    """One fork server."""

    pid: int
    generation: int


class ServerStatus(msgspec.Struct, frozen=True):
    """A server. ``state`` is starting, running, reloading or stopping; ``uptime`` in seconds."""

    name: str
    pid: int
    version: str
    state: str
    ready: bool
    generation: int
    uptime: float
    applications: list[ApplicationStatus]
    forkservers: list[ForkserverStatus]

    @classmethod
    def of(cls, result: Any) -> Self:
        """The status in the ``result`` of a server. Raises ``ControlError`` if it is none."""
        try:
            return msgspec.convert(result, cls)
        except msgspec.ValidationError as exc:
            raise ControlError(f"the server's status is not understood: {exc}") from exc


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """A command and its arguments."""


class _Status(_Request):
    pass


class _Config(_Request):
    pass


class _Reload(_Request):
    pass


class _Scale(_Request):
    workers: int
    application: str | None = None


class _Stop(_Request):
    graceful: bool = True


_REQUESTS: dict[str, type[_Request]] = {
    "status": _Status,
    "config": _Config,
    "reload": _Reload,
    "scale": _Scale,
    "stop": _Stop,
}


class _Answer(msgspec.Struct):
    progress: str | None = None
    ok: bool = False
    result: Any = None
    error: str = ""


def _parse(line: bytes) -> _Request:
    try:
        message = msgspec.json.decode(line)
    except (ValueError, RecursionError) as exc:
        raise ControlError(f"a request is one JSON object on one line: {exc}") from exc
    command = message.pop("command", None) if isinstance(message, dict) else None
    if not isinstance(command, str):
        raise ControlError('a request is a JSON object, as in {"command": "status"}')
    if command not in _REQUESTS:
        near = did_you_mean(command, _REQUESTS)
        known = ", ".join(_REQUESTS)
        raise ControlError(f"there is no command {command[:40]!r}{near}; there are: {known}")
    try:
        return msgspec.convert(message, _REQUESTS[command])
    except msgspec.ValidationError as exc:
        raise ControlError(f"{command}: {exc}") from exc


def _line(message: dict[str, Any]) -> bytes:
    # What is no JSON (a path, a function) is shown as its text.
    return msgspec.json.encode(message, enc_hook=str) + b"\n"


def _encodable(text: str) -> str:
    """``text`` without lone surrogates, which names of files may bring."""
    return text.encode(errors="backslashreplace").decode()


# Who is there


class Peer(NamedTuple):
    """The process at the other end of a Unix socket, as the kernel knows it.

    Of a server that is who called ``listen``, of a client who called ``connect``.
    ``pid`` is 0 for a process of a PID namespace that cannot be seen from here.
    """

    pid: int
    uid: int

    @classmethod
    def of(cls, sock: Any) -> Self | None:
        """The peer of ``sock``; None where the system cannot tell."""
        if not LINUX:
            return None
        size = struct.calcsize("iII")
        pid, uid, _ = struct.unpack(
            "iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return cls(pid, uid)

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else "a process of another PID namespace"
        return f"{process} of uid {self.uid}"


# The server's end


# Turns of the loop that it takes to make a session of what was accepted.
_ACCEPTED = 5


class ControlServer:
    """Lets its owner control ``controlled`` while the running loop serves.

    :param where: ``auto``, an abstract name on Linux and nothing elsewhere; ``off``;
        or the path of a socket file, which only its owner may open
    :param name: the server's name, for the log

    ``address`` is where it listens, as people write it; empty when it does not.

    Nothing that a client does disturbs what it asked for: a reload or a change of
    scale goes on when the client goes away. Reloads run one at a time. Who asks
    while one runs gets the next, because the code may have changed since that one
    began; all who wait for the next share it.
    """

    def __init__(self, controlled: Controlled, where: str, name: str) -> None:
        self.address = ""
        self._controlled = controlled
        self._where = where
        self._name = name
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._served = 0
        # The work in hand, which does not end with the connection that asked for it.
        self._work: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._next_reload: tuple[asyncio.Task[None], list[Progress]] | None = None
        self._stopping = False
        self._strangers: set[int] = set()

    async def start(self) -> None:
        """Listen.

        Raises ``ImproperlyConfigured`` when that is impossible at a path. An abstract
        name that somebody else has taken costs a warning and the control, not the server.
        """
        sock = self._open()
        if sock is None:
            return
        with ExitStack() as stack:
            stack.enter_context(sock)
            # A duplicate: uvloop would detach the original, which then leaves its file behind.
            self._server = await asyncio.start_unix_server(
                self._connected, sock=sock.dup(), limit=MAX_REQUEST, backlog=MAX_CONNECTIONS
            )
            stack.pop_all()
        self._listener = sock
        logger.debug("%s is controlled at %s", self._name, self.address)

    async def close(self) -> None:
        """Stop listening, cancel what is in hand, tell those who wait, and let go of all."""
        if self._server is None or self._listener is None:
            return
        server, self._server, self.address = self._server, None, ""
        # Not by server.close(), behind which what it has accepted cannot get a transport.
        for sock in server.sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        for _ in range(_ACCEPTED):
            await asyncio.sleep(0)
        server.close()
        self._listener.close()
        ending = [*self._sessions, *self._work]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await server.wait_closed()

    def _open(self) -> socket.socket | None:
        if self._where == "off":
            return None
        if self._where == "auto" and not LINUX:
            logger.debug("%s has no control socket: name a path for one", self._name)
            return None
        if self._where == "auto":
            bind = Bind("unix", path=f"@pulsar/{os.geteuid()}/{os.getpid()}")
        else:
            bind = Bind("unix", path=str(Path(self._where).absolute()), mode=0o600)
        try:
            [sock] = open_sockets(bind, backlog=MAX_CONNECTIONS)
        except ImproperlyConfigured as exc:
            why = str(exc).removeprefix(f"bind {str(bind)!r}: ")
            if not bind.abstract:
                raise ImproperlyConfigured(f"control {self._where!r}: {why}") from exc
            logger.warning("%s cannot be controlled: %s", self._name, why)
            return None
        self.address = bind.path
        return sock

    # A connection

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = asyncio.get_running_loop().create_task(self._session(reader, writer))
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = Peer.of(writer.get_extra_info("socket"))
            if not self._is_welcome(peer):
                return
            if self._served >= MAX_CONNECTIONS:
                _fail(writer, f"there are {MAX_CONNECTIONS} connections already")
                return
            self._served += 1
            try:
                await self._converse(reader, writer, peer)
            finally:
                self._served -= 1
        except OSError as exc:  # the deadline of an answer, too
            logger.debug("a control connection has ended: %s", exc)
        finally:
            # Closing would wait for a peer that does not read.
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _is_welcome(self, peer: Peer | None) -> bool:
        if peer is None or peer.uid in (0, os.geteuid()):
            return True  # where the system cannot tell, the file's mode has decided
        # Once for each user: whoever can connect could fill the log.
        if peer.uid not in self._strangers:
            self._strangers.add(peer.uid)
            logger.warning("%s may not control %s, and was turned away", peer, self._name)
        return False

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer | None
    ) -> None:
        while True:
            try:
                # Who has asked for the stop waits for it with an open connection.
                async with asyncio.timeout(None if self._stopping else REQUEST_TIMEOUT):
                    line = await reader.readline()
            except TimeoutError:
                return _fail(writer, f"no request came for {REQUEST_TIMEOUT:g} seconds")
            except ValueError:
                return _fail(writer, f"a request has at most {MAX_REQUEST} bytes")
            if not line:
                return None
            await self._answer(line, writer, peer)
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await writer.drain()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter, peer: Peer | None) -> None:
        try:
            request = _parse(line)
            if not isinstance(request, _Status | _Config):
                logger.info("%s: asked for by %s", _shown(request), peer or "its owner")
            result = await self._obey(request, lambda text: _tell(writer, text))
            answer = _line({"ok": True, "result": result})
        except (ControlError, ReloadFailed, ImproperlyConfigured) as exc:
            _fail(writer, str(exc))
        except asyncio.CancelledError:
            _fail(writer, f"{self._name} has stopped meanwhile")
            raise
        except Exception as exc:
            logger.exception("a control command has failed")
            _fail(writer, f"{type(exc).__name__}: {exc}; the server's log says more")
        else:
            _write(writer, answer)

    async def _obey(self, request: _Request, progress: Progress) -> Any:
        match request:
            case _Status():
                await self._controlled.refresh()
                return self._controlled.status()
            case _Config():
                return self._controlled.config()
            case _Reload():
                await _outcome(self._reload(progress))
            case _Scale():
                scale = self._controlled.scale(request.workers, request.application)
                await _outcome(self._start(scale))
            case _Stop():
                self._stopping = True
                self._controlled.stop(request.graceful)
        return None

    # Work

    def _reload(self, progress: Progress) -> asyncio.Task[None]:
        if self._next_reload is None:
            listeners: list[Progress] = []
            self._next_reload = self._start(self._reload_in_turn(listeners)), listeners
        task, listeners = self._next_reload
        listeners.append(progress)
        if self._reloading.locked():
            progress("another reload is under way: the next one begins when that has ended")
        return task

    async def _reload_in_turn(self, listeners: list[Progress]) -> None:
        def progress(text: str) -> None:
            for listener in listeners:
                listener(text)

        async with self._reloading:
            # From here on a change of the code may come too late for this one.
            self._next_reload = None
            await self._controlled.reload(progress)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


async def _outcome(work: asyncio.Task[None]) -> None:
    # Not `await work`: when the connection's task is cancelled, its work must not be.
    await asyncio.wait({work})
    work.result()


def _shown(request: _Request) -> str:
    arguments = msgspec.to_builtins(request).items()
    command = next(name for name, kind in _REQUESTS.items() if isinstance(request, kind))
    return " ".join([command, *(f"{key}={value!r}" for key, value in arguments)])


def _tell(writer: asyncio.StreamWriter, text: str) -> None:
    _write(writer, _line({"progress": _encodable(text)}))


def _fail(writer: asyncio.StreamWriter, text: str) -> None:
    _write(writer, _line({"ok": False, "error": _encodable(text)}))


def _write(writer: asyncio.StreamWriter, line: bytes) -> None:
    transport = writer.transport
    if transport.is_closing():
        return
    if transport.get_write_buffer_size() > MAX_ANSWER:
        transport.abort()
    else:
        writer.write(line)


# The client's end


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
            self._sock.sendall(_line({"command": command, **arguments}))
        while line := self._read_line(deadline):
            try:
                answer = msgspec.json.decode(line, type=_Answer)
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
