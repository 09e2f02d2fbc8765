"""TCP echo by a bare ``asyncio.Protocol``: what every Python server above it is compared to."""

import asyncio
from typing import cast

import listen


class Echo(asyncio.Protocol):
    """The least that an asyncio echo server can do."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def start(loop: asyncio.AbstractEventLoop) -> int:
    server = await loop.create_server(Echo, listen.HOST, listen.port())
    return int(server.sockets[0].getsockname()[1])


if __name__ == "__main__":
    listen.run(start)
