"""The body of a request that is answered while it is still coming: a thread reads it.

Owns: ``Incoming``: what has come and has not been read, in bounded memory, and both its
ends, the loop's and the thread's.
Leaves: who may answer so early to ``reading`` and ``threads``, the bytes to ``wire.http11``.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import IO

from ...errors import ConnectionClosed

__all__ = ["Incoming"]

# Bytes that may wait for the application; above that, the client waits.
_AHEAD = 256 * 1024

# What a thread takes at once, in bytes.
_BUFFER = 64 * 1024


class Incoming:
    """Takes in a body, piece by piece, while ``input`` is read by a thread.

    :param begun: what has come already
    :param wanted: called in the thread when the application waits, or has made room
    """

    def __init__(self, begun: bytes, wanted: Callable[[], None]) -> None:
        #: ``wsgi.input``.
        self.input = io.BufferedReader(_Input(self), _BUFFER)
        #: So many bytes have come.
        self.size = len(begun)
        #: No more will come, or no more is wanted; ``ended`` is set then.
        self.over = False
        self.ended = asyncio.Event()
        self._wanted = wanted
        self._changed = threading.Condition()
        self._pieces = deque([memoryview(begun)]) if begun else deque()
        self._held = len(begun)
        self._error: Exception | None = None
        # Since when we have been waiting for the client, by the monotonic clock; 0: we are not.
        self._hungry = 0.0
        # The application reads it when it is complete, or not at all.
        self._collects = False
        #: ``discard`` was called.
        self.discards = False
        #: Called once, when no thread has to do with it any more.
        self.unwanted: Callable[[object], None] | None = None
        # What has come beyond that, where it is read when it is complete.
        self._spool: IO[bytes] | None = None

    # On the loop

    def add(self, data: bytes) -> bool:
        """Keep ``data``. Returns True when it is enough for now."""
        self.size += len(data)
        with self._changed:
            self._hungry = monotonic() if self._collects or self.discards else 0.0
            if not self.discards:
                if self._collects and self._held > _AHEAD:
                    if self._spool is None:
                        import tempfile  # only here: see Body

                        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - see drop
                    self._spool.write(data)
                else:
                    self._pieces.append(memoryview(data))
                    self._held += len(data)
                self._changed.notify()
            return not self.wants_more

    def end(self, error: Exception | None = None) -> None:
        """The body is complete or, with ``error``, never will be."""
        with self._changed:
            if not self.over:
                self.over = True
                self._error = error
                if self._spool is not None:
                    self._spool.seek(0)
                self.ended.set()
            self._changed.notify()

    def close(self) -> None:
        """No more will come: the thread gets ``ConnectionClosed`` when it has read what has."""
        self.end(ConnectionClosed("the body of the request is not complete"))

    def collect(self) -> None:
        """Keep whatever comes: nobody reads before it is complete."""
        self._collects = True
        self._hungry = monotonic()

    def forgo(self, task: object = None) -> None:
        """Let others wait for their clients: this one is nobody's business any more."""
        unwanted, self.unwanted = self.unwanted, None
        if unwanted is not None:
            unwanted(self)

    def discard(self) -> None:
        """Drop whatever comes: nobody reads any more."""
        self.forgo()
        with self._changed:
            self.discards = True
            self._pieces.clear()
            self._held = 0
            self._hungry = monotonic()

    def drop(self) -> None:
        """The response is complete: let go of the file."""
        with self._changed:
            if self.over and self._spool is not None:
                self._spool.close()
                self._spool = None

    @property
    def wants_more(self) -> bool:
        """There is room for more than has come."""
        return not self.over and (self._held <= _AHEAD or self._collects)

    def waited(self) -> float:
        """For how many seconds we have been waiting for the client."""
        hungry = self._hungry
        return monotonic() - hungry if hungry and not self.over else 0.0

    # In the thread

    def gather(self) -> None:
        """Wait until the body is complete, or never will be."""
        with self._changed:
            self._collects = True
            while not self.over:
                self._hungry = self._hungry or monotonic()
                self._wanted()
                self._changed.wait()

    def take(self, buffer: memoryview) -> int:
        """Fill ``buffer``, as far as something is there, and wait where nothing is.

        Returns how many bytes that were; 0: the body has ended. Raises
        ``ConnectionClosed`` when it never will.
        """
        with self._changed:
            while not self._pieces:
                if self.over and self._spool is not None:
                    data = self._spool.read(len(buffer))
                    if data:
                        buffer[: len(data)] = data
                        return len(data)
                if self._error is not None:
                    raise self._error
                if self.over:
                    return 0
                self._hungry = self._hungry or monotonic()
                self._wanted()
                self._changed.wait()
            piece = self._pieces[0]
            size = min(len(buffer), len(piece))
            buffer[:size] = piece[:size]
            if size < len(piece):
                self._pieces[0] = piece[size:]
            else:
                self._pieces.popleft()
            full = self._held > _AHEAD
            self._held -= size
            if full and self._held <= _AHEAD:
                self._wanted()
            return size


class _Input(io.RawIOBase):
    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._incoming.take(memoryview(buffer).cast("B"))
