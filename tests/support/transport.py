"""A transport without a socket: what a protocol does to it can be read afterwards.

Owns: ``FakeTransport``.
Leaves: the loop's part to the test, which calls the protocol itself: ``data_received``,
``eof_received``, and ``lost``, which is a method here because it belongs to closing.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

Data = bytes | bytearray | memoryview


class FakeTransport(asyncio.Transport):
    """A stream transport whose peer takes everything, or nothing while ``clogged``.

    ``written`` holds what went out, one item for each call of ``write`` or
    ``writelines``. A clogged transport buffers, and tells its protocol at
    ``high`` and ``low`` bytes, as the loops' transports do. ``connection_lost``
    is never called from inside ``close`` or ``abort``, as with a real loop: call ``lost``.
    """

    def __init__(self, protocol: Any = None, *, tls: bool = False, peer: Any = None) -> None:
        super().__init__(
            extra={
                "peername": peer or ("192.0.2.1", 4321),
                "sslcontext": object() if tls else None,
            }
        )
        self.protocol = protocol
        self.written: list[bytes] = []
        self.calls: list[str] = []
        self.reading = True
        self.closing = False
        self.aborted = False
        self.clogged = False
        self.high = 64 * 1024
        self.low = 16 * 1024
        self._buffered = 0
        self._paused = False

    # What a protocol calls

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.calls.append("pause_reading")
        self.reading = False

    def resume_reading(self) -> None:
        self.calls.append("resume_reading")
        self.reading = True

    def write(self, data: Data) -> None:
        memoryview(data)  # as strict as a real one
        self.calls.append("write")
        self._write(bytes(data))

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        self.calls.append("writelines")
        self._write(b"".join(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = 64 * 1024 if high is None else high
        self.low = self.high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    # What a test calls

    @property
    def sent(self) -> bytes:
        """All bytes that were written, joined."""
        return b"".join(self.written)

    def take(self) -> list[bytes]:
        """What was written since the last call, one item for each write."""
        written, self.written = self.written, []
        return written

    def drain(self, size: int | None = None) -> None:
        """The peer reads ``size`` bytes of the buffer; None: all, and is clogged no more."""
        if size is None:
            self.clogged = False
            size = self._buffered
        self._buffered -= size
        if self._paused and self._buffered <= self.low:
            self._paused = False
            self.protocol.resume_writing()

    def lost(self, exc: BaseException | None = None) -> None:
        """The connection is gone: with ``exc`` by the peer or the network."""
        self.closing = True
        self.protocol.connection_lost(exc)

    def _write(self, data: bytes) -> None:
        self.written.append(data)
        if self.clogged:
            self._buffered += len(data)
            if not self._paused and self._buffered > self.high:
                self._paused = True
                self.protocol.pause_writing()


def connect(protocol: Any, **options: Any) -> FakeTransport:
    """A transport whose ``protocol`` was told of it."""
    transport = FakeTransport(protocol, **options)
    protocol.connection_made(transport)
    return transport
