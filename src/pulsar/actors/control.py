"""The control socket: how ``pulsar ps``, ``reload``, ``stop`` reach a server that runs.

Owns: the server's end, ``ControlServer``, which runs in the arbiter's loop.
Leaves: the client's end to ``control_client``, what is said to ``control_messages``, what a
command does to ``Controlled``.

A Unix socket; on Linux an abstract one, whose name says whose server it is:
``@pulsar/UID/PID``. It leaves no file behind, and it has no permissions: so the kernel is
asked at both ends who the other one is (``SO_PEERCRED``). The server serves root and
its own user. The client trusts nobody who has taken a name that is not his.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..errors import ControlError, ImproperlyConfigured, ReloadFailed
from ..net import Bind
from ..sockets import open_sockets
from .control_messages import (
    LINUX,
    MAX_ANSWER,
    REQUESTS,
    ConfigRequest,
    Peer,
    Progress,
    ReloadRequest,
    Request,
    ScaleRequest,
    StatusRequest,
    StopRequest,
    encodable,
    parse_request,
    render_line,
)

__all__ = ["ControlServer", "Controlled"]

logger = logging.getLogger("pulsar.server")

# The longest request, in bytes.
MAX_REQUEST = 64 * 1024
MAX_CONNECTIONS = 16
# Seconds for a request to arrive, and for its answer to be taken.
REQUEST_TIMEOUT = 10.0
ANSWER_TIMEOUT = 10.0


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
            request = parse_request(line)
            if not isinstance(request, StatusRequest | ConfigRequest):
                logger.info("%s: asked for by %s", _shown(request), peer or "its owner")
            result = await self._obey(request, lambda text: _tell(writer, text))
            answer = render_line({"ok": True, "result": result})
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

    async def _obey(self, request: Request, progress: Progress) -> Any:
        match request:
            case StatusRequest():
                await self._controlled.refresh()
                return self._controlled.status()
            case ConfigRequest():
                return self._controlled.config()
            case ReloadRequest():
                await _outcome(self._reload(progress))
            case ScaleRequest():
                scale = self._controlled.scale(request.workers, request.application)
                await _outcome(self._start(scale))
            case StopRequest():
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


def _shown(request: Request) -> str:
    arguments = msgspec.to_builtins(request).items()
    command = next(name for name, kind in REQUESTS.items() if isinstance(request, kind))
    return " ".join([command, *(f"{key}={value!r}" for key, value in arguments)])


def _tell(writer: asyncio.StreamWriter, text: str) -> None:
    _write(writer, render_line({"progress": encodable(text)}))


def _fail(writer: asyncio.StreamWriter, text: str) -> None:
    _write(writer, render_line({"ok": False, "error": encodable(text)}))


def _write(writer: asyncio.StreamWriter, line: bytes) -> None:
    transport = writer.transport
    if transport.is_closing():
        return
    if transport.get_write_buffer_size() > MAX_ANSWER:
        transport.abort()
    else:
        writer.write(line)
