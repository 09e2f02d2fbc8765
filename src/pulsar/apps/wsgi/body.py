"""The body of a request, from the first byte to ``wsgi.input``.

Owns: where it is kept until it is complete: in memory, then in a temporary file.
Leaves: where it ends, and how long it may be, to ``wire.http11``.
"""

from __future__ import annotations

import io
from typing import IO, NoReturn

__all__ = ["NO_INPUT", "Body", "EmptyInput"]

# A body up to so many bytes is kept in memory, a longer one in a temporary file.
_IN_MEMORY = 256 * 1024


class EmptyInput(io.BytesIO):
    """The input of a request without a body; one for all of them, which stays open."""

    __slots__ = ()

    def close(self) -> None:
        """Does nothing, whoever has wrapped it."""

    def writable(self) -> bool:
        """It is not."""
        return False

    def write(self, data: object) -> NoReturn:
        """Raises ``io.UnsupportedOperation``."""
        raise io.UnsupportedOperation("the input of a request is not written to")

    def writelines(self, lines: object) -> NoReturn:
        """Raises ``io.UnsupportedOperation``."""
        self.write(lines)


NO_INPUT = EmptyInput()


class Body:
    """Takes in a body, piece by piece."""

    __slots__ = ("_file", "_memory", "size")

    def __init__(self) -> None:
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        #: So many bytes have come.
        self.size = 0

    def add(self, data: bytes) -> bool:
        """Keep ``data``. Returns False: there is always room. Raises ``OSError``: there was not."""
        self.size += len(data)
        if self._file is not None:
            self._file.write(data)
            return False
        self._memory += data
        if self.size > _IN_MEMORY:
            import tempfile  # only here: most servers never get there

            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the request
            self._file.write(self._memory)
            self._memory = bytearray()
        return False

    def taken(self) -> bytes | None:
        """What has come, to be kept elsewhere; None: it is too much for that."""
        return bytes(self._memory) if self._file is None else None

    def open(self) -> IO[bytes]:
        """The complete body, to be read from its beginning; its reader closes it."""
        file, self._file = self._file, None
        if file is None:
            return io.BytesIO(self._memory)
        file.seek(0)
        return file

    def close(self) -> None:
        """Let go of what has come."""
        if self._file is not None:
            self._file.close()
