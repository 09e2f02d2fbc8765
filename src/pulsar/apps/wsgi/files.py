"""Files as responses: ``wsgi.file_wrapper`` (PEP 3333), sent by the kernel where it can.

Owns: ``FileWrapper``; what of a file is sent, and how.
Leaves: the head to ``response``, ranges to the application: what is sent begins where the
file stands, and ends where ``Content-Length`` says.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ...errors import ConnectionClosed

if TYPE_CHECKING:
    from ...protocols.connection import Connection
    from .response import HttpServerResponse

__all__ = ["FileWrapper", "send_file"]

# Bytes that the kernel may send in one call; that one read gets, where it does not send;
# and that go through the transport where the client does not read, for it to wait.
_SEND = 1024 * 1024
_READ = 256 * 1024
_WAIT = 16 * 1024

# What reads the bytes of its file as they are: a GzipFile has a descriptor, too.
_PLAIN_FILES = (io.BufferedReader, io.BufferedRandom, io.FileIO)


class FileWrapper:
    """``wsgi.file_wrapper``: an iterable of the blocks of a file.

    :param filelike: has ``read(size)``, and perhaps ``close()``
    :param blksize: of a block, in bytes
    """

    def __init__(self, filelike: Any, blksize: int = 64 * 1024) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close: Callable[[], None] = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        while block := self.filelike.read(self.blksize):
            yield block


async def send_file(response: HttpServerResponse, wrapper: FileWrapper) -> bool:
    """Send what is left of a file; False: it is none that can be sent so.

    Raises ``ConnectionClosed`` when the client has gone.
    """
    connection = response.connection
    found = _plain_file(wrapper.filelike)
    if found is None or connection is None or response.headers_sent is not None:
        return False
    descriptor, offset, size = found
    end = offset + response.begin(size)
    sock = None
    if hasattr(os, "sendfile") and connection.transport.get_extra_info("sslcontext") is None:
        sock = connection.transport.get_extra_info("socket")
    if sock is not None and offset < end:
        offset = await _send_by_kernel(response, connection, sock, descriptor, offset, end)
    while offset < end:
        data = await asyncio.to_thread(os.pread, descriptor, min(_READ, end - offset), offset)
        if not data:
            break  # it was cut short meanwhile
        offset += len(data)
        await response.send(data)
    response.end()
    return True


async def _send_by_kernel(
    response: HttpServerResponse,
    connection: Connection,
    sock: Any,
    descriptor: int,
    offset: int,
    end: int,
) -> int:
    """Send from ``offset`` on; returns where it ends: before ``end`` if the kernel cannot."""
    transport = connection.transport
    # What was written must be gone, and tells us when it is.
    transport.set_write_buffer_limits(high=0)
    try:
        while offset < end:
            if connection.writing_paused:
                await connection.write_waiter()
            if connection.closing:
                raise ConnectionClosed("the client has gone while a file was sent to it")
            try:
                sent = os.sendfile(sock.fileno(), descriptor, offset, min(_SEND, end - offset))
            except BlockingIOError:
                data = os.pread(descriptor, min(_WAIT, end - offset), offset)
                if not data:
                    break
                response.send(data)
                offset += len(data)
                continue
            except (BrokenPipeError, ConnectionResetError):
                connection.abort()
                continue
            except OSError:
                break  # there are file systems that it cannot be done with
            if not sent:
                break
            offset += sent
            response.sent_otherwise(sent)
            await asyncio.sleep(0)
        if connection.writing_paused:
            await connection.write_waiter()
    finally:
        if not connection.closing:
            transport.set_write_buffer_limits()
    return offset


def _plain_file(filelike: Any) -> tuple[int, int, int] | None:
    """Descriptor, position and the number of bytes that are left."""
    # A file of that kind is made by that module, which is not imported for its sake.
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None and isinstance(filelike, tempfile._TemporaryFileWrapper):  # noqa: SLF001
        filelike = filelike.file
    if type(filelike) not in _PLAIN_FILES:
        return None
    try:
        descriptor = filelike.fileno()
        status = os.fstat(descriptor)
        offset = filelike.tell()
    except (OSError, ValueError):
        return None  # closed, or no file but a pipe
    if not stat.S_ISREG(status.st_mode):
        return None
    return descriptor, offset, max(0, status.st_size - offset)
