"""UDP echo by a bare ``asyncio.DatagramProtocol``."""

import asyncio
from typing import Any, cast

import listen


class Echo(asyncio.DatagramProtocol):
    """The least that an asyncio datagram server can do."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.transport.sendto(data, addr)


async def start(loop: asyncio.AbstractEventLoop) -> int:
    address = (listen.HOST, listen.port())
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=address)
    return int(transport.get_extra_info("sockname")[1])


if __name__ == "__main__":
    listen.run(start)
