"""TCP echo by a bare ``asyncio.BufferedProtocol``, whose buffer is reused for every read."""

import asyncio
from typing import cast

import listen

READ_SIZE = 256 * 1024


class Echo(asyncio.BufferedProtocol):
    """Reads into one buffer per process; a write must copy out of it before the next read."""

    buffer = memoryview(bytearray(READ_SIZE))
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


async def start(loop: asyncio.AbstractEventLoop) -> int:
    server = await loop.create_server(Echo, listen.HOST, listen.port())
    return int(server.sockets[0].getsockname()[1])


if __name__ == "__main__":
    listen.run(start)
