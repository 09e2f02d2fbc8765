"""The Redis protocol (RESP2) as a server speaks it: commands in, replies out, no I/O.

Owns: ``CommandReader``, which finds one command in a stream of bytes, and ``encode``.
Leaves: what the commands mean to ``manage.py``.

A command is an array of bulk strings, ``*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n``, or a
line of words, ``GET k\\r\\n``, as a person types it (without Redis's quotes).
"""

from pulsar import FrameTooLarge, ProtocolError
from pulsar.framing import LineFramer

KIB = 1024
MIB = 1024 * KIB

MAX_LINE = 64 * KIB  # of a line: a length, or an inline command
MAX_WORDS = 64 * KIB  # in one command
MAX_BULK = MIB  # of one word
MAX_COMMAND = 8 * MIB  # of all words of one command, and of a list in a reply


class ReplyError(Exception):
    """An error that the client is told of: ``-ERR ...``; the connection goes on."""


class CommandReader:
    """Reads one command, however its bytes are cut up. Make a new one for the next."""

    def __init__(self):
        self._line = LineFramer(max_size=MAX_LINE)
        self._words = []
        self._missing = 0  # words that are still to come
        self._length = None  # of the word that comes next; None: a line comes next
        self._word = bytearray()
        self._size = 0  # of all words so far

    def split(self, data):
        """Take in as much of ``data`` as the command needs.

        Returns the command, a list of words, and the bytes behind it; or None and
        nothing when it is not complete. Raises ``ProtocolError``.
        """
        while data:
            if self._length is None:
                try:
                    line, data = self._line.split(data)
                except FrameTooLarge:
                    raise ProtocolError("too big inline request") from None
                complete = line is not None and self._take_line(line)
            else:
                complete, data = self._take_word(data)
            if complete:
                return self._words, data
        return None, b""

    def _take_line(self, line):
        """Returns True when the command is complete."""
        if self._missing:
            if line[:1] != b"$":
                raise ProtocolError(f"expected '$', got {line[:1].decode('ascii', 'replace')!r}")
            self._length = _number(line, MAX_BULK, "invalid bulk length")
            self._size += self._length
            if self._size > MAX_COMMAND:
                raise ProtocolError("the command is too large")
        elif line[:1] == b"*":
            self._missing = _number(line, MAX_WORDS, "invalid multibulk length")
        else:
            self._words = line.split()
            return bool(self._words)  # an empty line is nothing at all
        return False

    def _take_word(self, data):
        end = self._length + 2 - len(self._word)  # with the CRLF behind it
        self._word += data[:end]
        if len(data) < end:
            return False, b""
        if not self._word.endswith(b"\r\n"):
            raise ProtocolError("a word is longer than its length says")
        self._words.append(bytes(self._word[:-2]))
        self._word.clear()
        self._length = None
        self._missing -= 1
        return not self._missing, data[end:]


def encode(reply):
    """The bytes of a reply: str for a status, bytes, int, None, a list of these, or an error."""
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, str):
        return b"+%b\r\n" % reply.encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(encode, reply)))
    # An error is one line, whatever a client made us put into it.
    return b"-%b\r\n" % " ".join(str(reply).split()).encode("utf-8", "replace")


def _number(line, limit, refusal):
    """The number behind the first character of ``line``."""
    digits = line[1:]
    # Not int() alone, which takes b" +1_0", nor digits without end, which it is slow with.
    if not digits.isdigit() or len(digits) > 10 or int(digits) > limit:
        raise ProtocolError(refusal)
    return int(digits)
