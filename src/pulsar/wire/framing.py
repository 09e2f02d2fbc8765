"""Framing: a stream of bytes cut into messages, and messages made into bytes.

Owns: ``LineFramer``, ``DelimiterFramer`` and ``LengthFramer``, and their caps.
Leaves: sockets, and what a message means, to whoever feeds the framer.

A framer belongs to one direction of one connection and keeps the bytes of the
frame that is not complete yet. There are two ways to use it::

    for message in framer.feed(data):       # a framer that lives with its connection
        ...

    message, tail = framer.split(data)      # one message, and the bytes behind it

Both are linear in the bytes they are given, however the peer cut them up.

A frame over the cap raises ``FrameTooLarge``, after every message before it has
been delivered, and before more than the cap and one read are held. There is no
way to find the next frame then: the framer forgets what it holds and answers any
further call with the same error. The connection is to be closed.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, TypeVar

from ..errors import FrameTooLarge, IncompleteFrame, InvalidMessage, ProtocolError, PulsarException

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Data", "DelimiterFramer", "Framer", "LengthFramer", "LineFramer"]

Data = bytes | bytearray | memoryview
DataT = TypeVar("DataT", bytes, bytearray, memoryview)

KIB = 1024
MIB = 1024 * KIB


class Framer(ABC):
    """What the framers share: the unfinished frame, the cap and the error."""

    __slots__ = ("_buffer", "_error", "_overlap", "_searched", "max_size")

    def __init__(self, max_size: int, overlap: int = 0) -> None:
        if max_size < 1:
            raise PulsarException(f"max_size is {max_size}: a framer needs at least 1 byte")
        #: The largest message in bytes, without delimiter or header.
        self.max_size = max_size
        self._buffer = bytearray()
        self._searched = 0  # no frame ends within so many bytes of the buffer
        self._overlap = overlap  # held bytes that the next search has to look at again
        self._error: ProtocolError | None = None

    def __repr__(self) -> str:
        state = "failed" if self._error else f"{self.pending} bytes pending"
        return f"<{self._title}, {state}>"

    @property
    def pending(self) -> int:
        """The number of bytes held: those of the frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: Data) -> Iterator[bytes]:
        """Take ``data`` in; give an iterator over the messages that are now complete.

        All of ``data`` has been taken in when this returns, iterated or not.
        Where a frame is refused, the iterator gives the messages before it and
        then raises; with none before it, the call itself raises.

        Raises ``FrameTooLarge``, or ``ProtocolError`` for an impossible length.
        """
        if self._error is not None:
            raise self._again()
        if self._buffer:
            self._buffer += data
            if self._find_end(self._buffer, self._searched) < 0:
                self._wait()
                return iter(())
            data = self._buffer
            self._buffer = bytearray()
        messages, rest = self._cut(data if type(data) is bytes else bytes(data))
        if rest is None:
            if not messages:
                raise self._again()
            return self._then_raise(messages)
        if rest:
            self._buffer += rest
            self._wait()
        return iter(messages)

    def split(self, data: DataT) -> tuple[bytes | None, DataT]:
        """Take in as much of ``data`` as the next message needs.

        Returns that message and the bytes behind it, which have not been taken
        in; or None and nothing when the message is not complete.

        The tail is a copy, or a view where ``data`` is a ``memoryview``: give it
        one where a peer may send thousands of small messages at a time.

        Raises ``FrameTooLarge``, or ``ProtocolError`` for an impossible length.
        """
        if self._error is not None:
            raise self._again()
        if self._buffer:
            held = len(self._buffer)
            self._buffer += data
            end = self._find_end(self._buffer, self._searched)
            if end < 0:
                self._wait()
                return None, data[:0]
            message = self._message(self._buffer, end)
            self._buffer.clear()
            return message, data[end - held :]
        end = self._find_end(data, 0)
        if end < 0:
            self._buffer += data
            self._wait()
            return None, data[:0]
        return self._message(data, end), data[end:]

    def eof(self) -> None:
        """The stream has ended.

        Raises ``IncompleteFrame`` when that was inside a frame, and the framer's
        error when it has refused one.
        """
        if self._error is not None:
            raise self._again()
        if self._buffer:
            raise IncompleteFrame(
                f"{self._title}: the stream ended inside a frame, "
                f"of which {self.pending} bytes had come"
            )

    @abstractmethod
    def encode(self, message: Data) -> bytes:
        """The frame for ``message``.

        Raises ``InvalidMessage`` for a message that a framer like this one at
        the other end would refuse, or read as something else.
        """

    @property
    @abstractmethod
    def _title(self) -> str:
        """The framer and its cap, in words."""

    @abstractmethod
    def _find_end(self, data: Data, start: int) -> int:
        """Where the first frame in ``data`` ends; -1 when it goes on behind it.

        No frame ends in the first ``start`` bytes. Refuses a frame that is over
        the cap already.
        """

    @abstractmethod
    def _message(self, data: Data, end: int) -> bytes:
        """The message in the frame that ends at ``end``; it is refused when over the cap."""

    @abstractmethod
    def _cut(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        """Every message in ``data``, and the rest; None: the next frame was refused."""

    def _wait(self) -> None:
        self._searched = max(0, len(self._buffer) - self._overlap)

    def _refuse(self, error: ProtocolError) -> ProtocolError:
        """Record ``error`` for good; return what to raise."""
        self._buffer.clear()
        self._error = error
        return self._again()

    def _too_large(self) -> FrameTooLarge:
        return FrameTooLarge(f"{self._title}: the peer sent a frame that is larger")

    def _again(self) -> ProtocolError:
        # A copy: raising the kept one would tie the caller's frames to the framer.
        assert self._error is not None
        return type(self._error)(*self._error.args)

    def _then_raise(self, messages: list[bytes]) -> Iterator[bytes]:
        yield from messages
        raise self._again()

    def _check_size(self, message: Data, limit: int) -> None:
        if len(message) > limit:
            raise InvalidMessage(
                f"{self._title}: a message of {len(message)} bytes is over the limit of {limit}"
            )


class DelimiterFramer(Framer):
    """Messages that each end with the same bytes, which no message contains."""

    __slots__ = ("delimiter",)

    # 1 where a CR in front of the delimiter belongs to it.
    _cr = 0

    def __init__(self, delimiter: bytes, *, max_size: int = 64 * KIB) -> None:
        """``delimiter``: one byte or more. ``max_size``: of a message, in bytes."""
        if not delimiter:
            raise PulsarException("delimiter is empty: a framer needs at least one byte")
        # The last bytes of the buffer may be the first of a delimiter.
        super().__init__(max_size, overlap=len(delimiter) - 1)
        #: The bytes that end a message.
        self.delimiter = delimiter

    def encode(self, message: Data) -> bytes:
        self._check_size(message, self.max_size)
        frame = bytes(message) + self.delimiter
        # Not only "contains": b"ab" and delimiter b"aba" make b"[aba]ba", which ends too early.
        if frame.find(self.delimiter) != len(message):
            raise InvalidMessage(f"{self._title}: a message cannot contain the delimiter")
        return frame

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}({self.delimiter!r}) of at most {self.max_size} bytes"

    def _find_end(self, data: Data, start: int) -> int:
        if isinstance(data, memoryview):
            found = _find_in_view(data, self.delimiter)
        else:
            found = data.find(self.delimiter, start)
        if found >= 0:
            return found + len(self.delimiter)
        if self._is_over(data):
            raise self._refuse(self._too_large())
        return -1

    def _message(self, data: Data, end: int) -> bytes:
        message = bytes(data[: end - len(self.delimiter)])
        if self._cr and message.endswith(b"\r"):
            message = message[:-1]
        if len(message) > self.max_size:
            raise self._refuse(self._too_large())
        return message

    def _cut(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        *messages, rest = data.split(self.delimiter)
        if self._cr and b"\r" in data:
            messages = [line[:-1] if line.endswith(b"\r") else line for line in messages]
        if len(data) > self.max_size:  # or nothing in it can be over the cap
            for index, message in enumerate(messages):
                if len(message) > self.max_size:
                    self._refuse(self._too_large())
                    return messages[:index], None
            if self._is_over(rest):
                self._refuse(self._too_large())
                return messages, None
        return messages, rest

    def _is_over(self, rest: Data) -> bool:
        """True when no delimiter can come in time for ``rest``."""
        return len(rest) > self.max_size + self._cr + self._overlap


class LineFramer(DelimiterFramer):
    """Lines: LF and CRLF both end one, and are not part of it."""

    __slots__ = ("ending",)

    _cr = 1

    def __init__(self, *, ending: bytes = b"\n", max_size: int = 64 * KIB) -> None:
        """``ending``: what ``encode`` puts behind a line, ``b"\\n"`` or ``b"\\r\\n"``.

        ``max_size``: of a line without its ending, in bytes.
        """
        if ending not in (b"\n", b"\r\n"):
            raise PulsarException(f"ending is {ending!r}: a line ends with b'\\n' or b'\\r\\n'")
        super().__init__(b"\n", max_size=max_size)
        #: What ``encode`` puts behind a line.
        self.ending = ending

    def encode(self, message: Data) -> bytes:
        self._check_size(message, self.max_size)
        line = bytes(message)
        if b"\n" in line or line.endswith(b"\r"):
            raise InvalidMessage(f"{self._title}: a line cannot contain LF, nor end with CR")
        return line + self.ending

    @property
    def _title(self) -> str:
        return f"{type(self).__name__} of at most {self.max_size} bytes"


class LengthFramer(Framer):
    """Messages that each follow a header which holds their length in bytes."""

    __slots__ = ("_header", "includes_header", "limit")

    def __init__(
        self,
        size: Literal[1, 2, 4, 8] = 4,
        byteorder: Literal["big", "little"] = "big",
        includes_header: bool = False,
        *,
        max_size: int = MIB,
    ) -> None:
        """``size``: of the header, in bytes; it holds an unsigned integer.

        ``includes_header``: the length in the header counts the header, too.
        ``max_size``: of a message, in bytes.
        """
        if size not in _CODES:
            raise PulsarException(f"size is {size!r}: a length header has 1, 2, 4 or 8 bytes")
        if byteorder not in _ORDERS:
            raise PulsarException(f"byteorder is {byteorder!r}: it is 'big' or 'little'")
        super().__init__(max_size)
        self._header = struct.Struct(_ORDERS[byteorder] + _CODES[size])
        self.includes_header = includes_header
        most = 256**size - 1 - (size if includes_header else 0)
        #: The largest message to encode: ``max_size``, or what the header can express.
        self.limit = min(max_size, most)

    def encode(self, message: Data) -> bytes:
        self._check_size(message, self.limit)
        length = len(message) + (self._header.size if self.includes_header else 0)
        return self._header.pack(length) + message

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}({self._header.size}) of at most {self.max_size} bytes"

    def _find_end(self, data: Data, _start: int) -> int:
        if len(data) < self._header.size:
            return -1
        end = self._frame_size(data, 0)
        return end if end <= len(data) else -1

    def _message(self, data: Data, end: int) -> bytes:
        return bytes(data[self._header.size : end])

    def _cut(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        messages: list[bytes] = []
        header = self._header.size
        start = 0
        while start + header <= len(data):
            try:
                end = start + self._frame_size(data, start)
            except ProtocolError:
                return messages, None
            if end > len(data):
                break
            messages.append(data[start + header : end])
            start = end
        return messages, data[start:]

    def _frame_size(self, data: Data, at: int) -> int:
        """Of the frame that starts at ``at``, in bytes, header and message."""
        length: int
        (length,) = self._header.unpack_from(data, at)
        size = length if self.includes_header else length + self._header.size
        if size > self.max_size + self._header.size:
            raise self._refuse(self._too_large())
        if size < self._header.size:
            raise self._refuse(
                ProtocolError(
                    f"{self._title}: the peer sent the length {length}, "
                    f"which is less than the {self._header.size} bytes of its header"
                )
            )
        return size


_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_ORDERS = {"big": ">", "little": "<"}


def _find_in_view(view: memoryview, wanted: bytes) -> int:
    # A view cannot be searched, and copying all of it for each message in it would
    # be quadratic: copy a piece from its start, and a larger one until that is found.
    size = 512
    while True:
        found = bytes(view[:size]).find(wanted)
        if found >= 0 or size >= len(view):
            return found
        size *= 4
