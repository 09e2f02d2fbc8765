"""Mailboxes: one end of a private socketpair between two processes, or two threads.

Owns: ``Mailbox``: framed messages in both directions, descriptors that travel with
them, back-pressure.
Leaves: what messages mean, and where they go, to ``router`` and its users.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from ..errors import ActorGone
from ..wire.framing import LengthFramer
from .message import MAX_PAYLOAD, Message, Note, decode, encode

__all__ = ["MAX_MESSAGE", "Mailbox", "mailbox_pair", "new_framer", "receive"]

logger = logging.getLogger("pulsar.actors")

# Bytes of one message: a payload, an error's text or two, and the envelope.
MAX_MESSAGE = MAX_PAYLOAD + 1024 * 1024

# Bytes that wait to be written above which ``send`` waits, and below which it goes on.
_HIGH_WATER = 256 * 1024
_LOW_WATER = 64 * 1024

_READ_SIZE = 256 * 1024

# The kernel takes no more in one message (SCM_MAX_FD).
_MAX_DESCRIPTORS = 253

# Received descriptors are for this process, not for the programs that it starts.
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

_FAMILY = getattr(socket, "AF_UNIX", None)


def mailbox_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that nobody else can reach."""
    if _FAMILY is None:
        return socket.socketpair()
    return socket.socketpair(_FAMILY, socket.SOCK_STREAM)


def new_framer() -> LengthFramer:
    """The framing of a mailbox: four bytes of length."""
    return LengthFramer(4, max_size=MAX_MESSAGE)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """What has come through ``sock``, and the descriptors that came with it; no bytes: the end.

    Not ``socket.recv_fds``, which has no way to keep them from programs that we start.
    """
    if sys.platform == "win32":
        return sock.recv(_READ_SIZE), []
    room = socket.CMSG_LEN(_MAX_DESCRIPTORS * array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(_READ_SIZE, room, _CLOSE_ON_EXEC)
    descriptors = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(content) - len(content) % descriptors.itemsize
            descriptors.frombytes(content[:whole])
    return data, list(descriptors)


class Mailbox:
    """One end of a connection between two actors' loops.

    :param sock: a socket of ``mailbox_pair``; the mailbox closes it
    :param received: called with each message and the descriptors that came with it,
        which are the callee's to close
    :param lost: called once, when the other end is gone or ``close`` was called
    """

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[Mailbox, Message, list[int]], None],
        lost: Callable[[Mailbox], None],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._received = received
        self._on_lost = lost
        self._loop = loop or asyncio.get_running_loop()
        self._framer = new_framer()
        self._descriptors: deque[int] = deque()
        # Frames with the descriptors that go with their first byte.
        self._queue: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._queued = 0
        self._writing = False
        self._reading = False
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._resume_when_drained: list[Mailbox] = []
        self._held = 0
        self.closed = False
        # The loop's time at which the other end was last heard of.
        self.heard = self._loop.time()
        self._resume()

    @property
    def full(self) -> bool:
        """True when so much waits to be written that senders should wait, too."""
        return self._queued >= _HIGH_WATER

    @property
    def held(self) -> bool:
        """True while nothing is read, because what came is for somebody who is too slow."""
        return self._held > 0

    def post(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send ``message``, some time; the descriptors are duplicated by the kernel.

        They must stay open until the message is written: at once, unless the mailbox
        is ``full``. Does nothing when the mailbox is closed.
        """
        if self.closed:
            return
        if descriptors:
            if len(descriptors) > _MAX_DESCRIPTORS:
                raise ValueError(f"a message takes at most {_MAX_DESCRIPTORS} descriptors")
            assert isinstance(message, Note)
            message.descriptors = len(descriptors)
            # Ours to close when they are written: the caller may close its own now.
            descriptors = [os.dup(descriptor) for descriptor in descriptors]
        data = memoryview(self._framer.encode(encode(message)))
        self._queue.append((data, descriptors))
        self._queued += len(data)
        if not self._writing:
            self._write()

    async def send(self, message: Message) -> None:
        """Send ``message``; wait first while the mailbox is full.

        Raises ``ActorGone`` when the other end is gone.
        """
        while self.full and not self.closed:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter
        if self.closed:
            raise ActorGone("the actor has gone")
        self.post(message)

    def hold_until_drained(self, other: Mailbox) -> None:
        """Read nothing more from ``other`` until this mailbox has room again."""
        other.hold()
        self._resume_when_drained.append(other)

    def hold(self) -> None:
        """Read nothing until ``let_go`` was called as often."""
        self._held += 1
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def let_go(self) -> None:
        """Take back one ``hold``."""
        self._held -= 1
        # It was silent because we did not listen.
        self.heard = self._loop.time()
        if not self._held:
            self._resume()

    def close(self) -> None:
        """Close at once, dropping what was not written."""
        if self.closed:
            return
        self.closed = True
        descriptor = self._sock.fileno()
        if self._reading:
            self._loop.remove_reader(descriptor)
        if self._writing:
            self._loop.remove_writer(descriptor)
        self._sock.close()
        for _, descriptors in self._queue:
            _close_all(descriptors)
        self._queue.clear()
        _close_all(self._descriptors)
        self._descriptors.clear()
        self._drained()
        self._on_lost(self)

    def read_rest(self) -> None:
        """Read what the other end has written before it was closed."""
        while not self.closed and self._read():
            pass

    async def flush(self, timeout: float) -> None:
        """Wait until everything is written, for ``timeout`` seconds at most."""
        deadline = self._loop.time() + timeout
        while self._queue and not self.closed and self._loop.time() < deadline:
            await asyncio.sleep(0.005)

    def detach(self) -> None:
        """Forget the socket in a forked child: close our copy, tell nobody."""
        self.closed = True
        self._sock.close()

    # Reading

    def _resume(self) -> None:
        if not self.closed and not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._read)

    def _read(self) -> bool:
        """Read once; False when there was nothing."""
        try:
            data = self._receive()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self.heard = self._loop.time()
        try:
            for frame in self._framer.feed(data):
                message = decode(frame)
                descriptors = []
                if isinstance(message, Note) and message.descriptors:
                    descriptors = [self._descriptors.popleft() for _ in range(message.descriptors)]
                if self.closed:
                    _close_all(descriptors)
                    return False
                self._received(self, message, descriptors)
        except Exception:
            # Only a bug of ours, or a process that has lost its mind, gets here.
            logger.exception("a mailbox is closed: it has received what it cannot understand")
            self.close()
            return False
        return True

    def _receive(self) -> bytes:
        data, descriptors = receive(self._sock)
        self._descriptors.extend(descriptors)
        return data

    # Writing

    def _write(self) -> None:
        try:
            while self._queue:
                data, descriptors = self._queue[0]
                if descriptors:
                    sent = socket.send_fds(self._sock, [data], list(descriptors))
                    _close_all(descriptors)
                else:
                    sent = self._sock.send(data)
                self._queued -= sent
                if sent == len(data):
                    self._queue.popleft()
                else:
                    self._queue[0] = (data[sent:], ())
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._sock.fileno(), self._write)
        except OSError:
            # Later, and not in the middle of what its owner is doing.
            self._loop.call_soon(self.close)
            return
        else:
            if self._writing:
                self._writing = False
                self._loop.remove_writer(self._sock.fileno())
        if self._queued <= _LOW_WATER:
            self._drained()

    def _drained(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        others, self._resume_when_drained = self._resume_when_drained, []
        for other in others:
            other.let_go()


def _close_all(descriptors: Sequence[int] | deque[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
