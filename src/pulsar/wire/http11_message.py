"""One message off the wire: its lines, its body, its trailers.

Owns: ``MessageParser``: cutting lines, bodies and chunks (RFC 9112 sections 2.2,
5 to 8) out of whatever pieces arrive, within the limits.
Leaves: start lines, and what a head means, to its subclasses.

Theory of operation. A step is a function that takes the bytes at a position and
returns the position behind what it has used, or ``WAIT``; it may set the next
step. Bytes that wait are held, and never more of them than the rest of a line.
Errors are found in the order of the bytes, as soon as the byte that makes one is
there, so that it does not matter how the peer has cut the message into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .headers import TOKEN, Fields, add_field
from .http11_framing import CHUNKED, UNTIL_CLOSE
from .http11_limits import IncompleteMessage, MessageRefused

if TYPE_CHECKING:
    from .http11_limits import Limits

__all__ = ["MessageParser"]

WAIT: Final = -1
Step = Callable[[Any, bytes, int], int]

_NO_FIELDS = Fields([], {})

# RFC 9112 section 2.2: at least one empty line in front of a request is ignored.
_EMPTY_LINES = 4

_control = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_QUOTED = r'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
# RFC 9112 section 7.1.
_chunk_line = re.compile(
    rf"([0-9A-Fa-f]+)((?:[ \t]*;[ \t]*{TOKEN}"
    rf"(?:[ \t]*=[ \t]*(?:{TOKEN}|{_QUOTED}))?)*)".encode("latin-1")
).fullmatch

_plain_chunk = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n").match


class MessageParser:
    """Reads one message. The bytes behind it are given back untouched."""

    __slots__ = (
        "_cgi",
        "_end",
        "_error",
        "_extensions",
        "_held",
        "_left",
        "_limits",
        "_lines",
        "_pieces",
        "_seen",
        "_size",
        "_step",
        "_taken",
        "complete",
        "trailers",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._step: Step = MessageParser._start
        self._error: MessageRefused | None = None
        self._held = b""  # the beginning of a line, or of a chunk's end
        self._seen = 0  # so many bytes of the line at hand hold no control character
        self._end = 0  # where the line that was taken ends
        self._size = 0  # of the head or the trailers so far
        self._lines: list[str] = []
        self._cgi: dict[str, str] = {}
        self._left = 0  # of the body, or of the chunk
        self._taken = 0  # of the body's chunks so far
        self._extensions = 0
        self._pieces: list[bytes] = []
        #: The message has been read to its end.
        self.complete = False
        #: The fields behind a chunked body, once the message is complete.
        self.trailers = _NO_FIELDS

    def feed(self, data: bytes) -> bytes:
        """Take in what belongs to this message; return the bytes behind it.

        Raises ``MessageRefused``, and again for whatever is fed later: nothing
        behind an error is looked at.
        """
        if self._error is not None:
            raise MessageRefused(*self._error.args)
        if self._held:
            data = self._held + data
            self._held = b""
        position = 0
        try:
            while position < len(data) and not self.complete:
                used = self._step(self, data, position)
                if used == WAIT:
                    self._held = data[position:]
                    return b""
                position = used
        except MessageRefused as error:
            self._error = self._blame(error)
            self._pieces = []
            raise MessageRefused(*self._error.args) from None
        return data[position:]

    def read(self) -> bytes:
        """The bytes of the body that have come since the last call."""
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def eof(self) -> None:
        """The peer has ended its side.

        Raises ``IncompleteMessage`` when that was inside the message.
        """
        if self._error is not None:
            raise MessageRefused(*self._error.args)
        if self._step is MessageParser._until_close:
            self.complete = True
        elif not self.complete:
            raise IncompleteMessage(f"the peer ended its side inside {self._place()}")

    @property
    def _fresh(self) -> bool:
        """True as long as nothing has come that has to be kept in mind."""
        return self._step is MessageParser._start and not self._held and self._error is None

    @property
    def started(self) -> bool:
        """False as long as nothing has come but empty lines."""
        return self._step is not MessageParser._start or self._held not in {b"", b"\r"}

    # What a subclass adds

    def _start_line(self, line: str) -> None:
        """Take the start line. Raises ``MessageRefused``."""
        raise NotImplementedError

    def _head(self, fields: Fields) -> int:
        """Take the fields; return the framing of the body. Raises ``MessageRefused``."""
        raise NotImplementedError

    def _blame(self, error: MessageRefused) -> MessageRefused:
        """The error as it is to be raised: a copy, for the other holds on to our frames."""
        return MessageRefused(error.status, error.reason)

    def _place(self) -> str:
        if self._step in {MessageParser._start, MessageParser._field}:
            return "a head"
        return "a body"

    # Lines

    def _line(self, data: bytes, position: int, limit: int, status: int, what: str) -> bytes | None:
        """The line at ``position`` without its CRLF; None: it is not complete."""
        end = data.find(b"\n", position + self._seen)
        stop = end if end >= 0 else len(data)
        # A CR is half a line end, if it is the last byte so far.
        whole = stop > position and data[stop - 1] == 0x0D
        if whole:
            stop -= 1
        found = _control(data, position + self._seen, min(stop, position + limit + 1))
        if found is not None:
            raise MessageRefused(400, f"There is {_named(found[0][0])} in {what}.")
        if stop - position > limit:
            raise self._too_long(data[position : position + limit], status, what)
        if end < 0:
            self._seen = stop - position
            return None
        if not whole:
            raise MessageRefused(400, f"There is a bare LF in {what}.")
        self._seen = 0
        self._end = end + 1
        return data[position:stop]

    def _too_long(self, line: bytes, status: int, what: str) -> MessageRefused:
        """The error for a line that goes on behind ``line``."""
        return MessageRefused(status, f"{what[0].upper()}{what[1:]} is too long.")

    # Steps

    def _start(self, data: bytes, position: int) -> int:
        line = self._line(data, position, self._limits.start_line, 414, "the start line")
        if line is None:
            return WAIT
        if line:
            self._size = len(line) + 2
            self._start_line(line.decode("latin-1"))
            self._step = MessageParser._field
        else:
            self._size += 1
            if self._size > _EMPTY_LINES:
                raise MessageRefused(400, "There are empty lines where a message should begin.")
        return self._end

    def _field(self, data: bytes, position: int) -> int:
        line = self._field_line(data, position, "a header line")
        if line is None:
            return WAIT
        if not line:
            framing = self._head(Fields(self._lines, self._cgi))
            self._lines, self._cgi = [], {}
            self.begin_body(framing)
        return self._end

    def _field_line(self, data: bytes, position: int, what: str) -> bytes | None:
        """The next line of the head or the trailers; what is in it has been added."""
        limits = self._limits
        line = self._line(data, position, limits.field, 431, what)
        if line is not None:
            self._size += len(line) + 2
            if self._size > limits.head:
                raise MessageRefused(431, "The header lines are too long altogether.")
            if line:
                if len(self._lines) == limits.fields:
                    raise MessageRefused(431, "There are too many header lines.")
                add_field(self._lines, self._cgi, line.decode("latin-1"))
        return line

    def begin_body(self, framing: int) -> None:
        """Go on with the body, as ``framing`` says."""
        if framing == CHUNKED:
            self._step = MessageParser._chunk
        elif framing == UNTIL_CLOSE:
            self._step = MessageParser._until_close
        else:
            self._step = MessageParser._body
            self._left = framing
            self.complete = framing == 0

    def _body(self, data: bytes, position: int) -> int:
        piece = data[position : position + self._left]
        self._pieces.append(piece)
        self._left -= len(piece)
        self.complete = self._left == 0
        return position + len(piece)

    def _until_close(self, data: bytes, position: int) -> int:
        self._count(len(data) - position)
        self._pieces.append(data[position:])
        return len(data)

    def _chunk(self, data: bytes, position: int) -> int:
        used = self._whole_chunks(data, position)
        if used > position:
            return used
        line = self._line(data, position, self._limits.field, 400, "a chunk's size")
        if line is None:
            return WAIT
        match = _chunk_line(line)
        if match is None:
            raise MessageRefused(400, "The size of a chunk is malformed.")
        size, extensions = match.groups()
        self._extensions += len(extensions)
        if self._extensions > self._limits.chunk_extensions:
            raise MessageRefused(400, "There are too many chunk extensions.")
        self._left = int(size, 16)
        if self._left:
            self._count(self._left)
            self._step = MessageParser._chunk_data
        else:
            self._size = 0
            self._step = MessageParser._trailer
        return self._end

    def _whole_chunks(self, data: bytes, position: int) -> int:
        """Take the chunks that are there as a whole and have no extension."""
        # There may be thousands in one packet: this is what a step for each would do.
        while (match := _plain_chunk(data, position)) is not None:
            start = match.end()
            end = start + int(match[1], 16)
            if start == end or data[end : end + 2] != b"\r\n":
                break
            self._count(end - start)
            self._pieces.append(data[start:end])
            position = end + 2
        return position

    def _chunk_data(self, data: bytes, position: int) -> int:
        end = position + self._left
        piece = data[position:end]
        self._pieces.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._step = MessageParser._chunk_end
        return position + len(piece)

    def _chunk_end(self, data: bytes, position: int) -> int:
        ending = data[position : position + 2]
        if ending == b"\r\n":
            self._step = MessageParser._chunk
            return position + 2
        if ending == b"\r":
            return WAIT
        raise MessageRefused(400, "A chunk is longer than its size.")

    def _trailer(self, data: bytes, position: int) -> int:
        line = self._field_line(data, position, "a trailer")
        if line is None:
            return WAIT
        if not line:
            self.trailers = Fields(self._lines, self._cgi)
            self.complete = True
        return self._end

    def _count(self, size: int) -> None:
        self._taken += size
        if self._taken > self._limits.body:
            raise MessageRefused(413, "The body is too large.")


def _named(byte: int) -> str:
    names = {0x00: "a NUL", 0x0D: "a bare CR", 0x7F: "a DEL"}
    return names.get(byte, f"the control character 0x{byte:02X}")
