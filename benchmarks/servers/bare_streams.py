"""TCP echo by ``asyncio.start_server``: a task, a reader and a writer per connection."""

import asyncio

import listen

READ_SIZE = 64 * 1024


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo until the peer closes."""
    try:
        while data := await reader.read(READ_SIZE):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def start(loop: asyncio.AbstractEventLoop) -> int:
    server = await asyncio.start_server(echo, listen.HOST, listen.port())
    return int(server.sockets[0].getsockname()[1])


if __name__ == "__main__":
    listen.run(start)
