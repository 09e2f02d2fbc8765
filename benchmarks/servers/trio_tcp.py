"""TCP echo by trio: a task per connection."""

from functools import partial

import listen
import trio


async def echo(stream: trio.SocketStream) -> None:
    """Echo until the peer closes."""
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


async def main() -> None:
    """Serve for ever."""
    serve = partial(trio.serve_tcp, echo, listen.port(), host=listen.HOST)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve)
        listen.announce(listeners[0].socket.getsockname()[1])


if __name__ == "__main__":
    trio.run(main)
