"""What the peers' scripts share: their arguments, their loop, and saying that they listen.

A script runs as ``python SCRIPT PORT [uvloop|asyncio]``; port 0 chooses one. It serves
127.0.0.1 until it is killed, and prints ``listening PORT`` when it is ready.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

HOST = "127.0.0.1"


def port() -> int:
    """The port that the command line asks for."""
    return int(sys.argv[1])


def announce(number: int) -> None:
    """Tell whoever started this script that ``number`` accepts connections."""
    print(f"listening {number}", flush=True)


def run(start: Callable[[asyncio.AbstractEventLoop], Awaitable[int]]) -> None:
    """Run ``start``, which listens and returns its port, on the chosen loop; serve for ever."""

    async def serve() -> None:
        announce(await start(asyncio.get_running_loop()))
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    if sys.argv[2:] == ["asyncio"]:
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop
