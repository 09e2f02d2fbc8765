"""The loop runner: kinds, deadline, and what the loop's exception handler hears."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from tests.support import loops


def broken() -> None:
    raise ValueError("broken callback")


def test_runs_on_the_kind_that_was_asked_for(loop_kind: str, run: Callable[..., Any]) -> None:
    async def main() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    loop = run(main())
    assert isinstance(loop, uvloop.Loop) == (loop_kind == "uvloop")
    assert not loop.get_debug()
    assert loop.is_closed()


def test_a_callback_that_raises_fails_the_test(run: Callable[..., Any]) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(broken)
        await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="ValueError: broken callback"):
        run(main())


def test_an_exception_that_nobody_took_fails_the_test(run: Callable[..., Any]) -> None:
    async def fail() -> None:
        broken()

    async def main() -> None:
        task = asyncio.ensure_future(fail())
        await asyncio.wait([task])

    with pytest.raises(AssertionError, match="never retrieved"):
        run(main())


def test_errors_that_the_test_takes_are_expected(run: Callable[..., Any]) -> None:
    async def main() -> list[loops.Context]:
        asyncio.get_running_loop().call_soon(broken)
        await asyncio.sleep(0)
        return loops.take_errors()

    [context] = run(main())
    assert str(context["exception"]) == "broken callback"


def test_errors_of_an_allowed_class_are_expected(run: Callable[..., Any]) -> None:
    async def main() -> str:
        asyncio.get_running_loop().call_soon(broken)
        await asyncio.sleep(0)
        return "done"

    assert run(main(), allow=ValueError) == "done"
    with pytest.raises(AssertionError, match="broken callback"):
        run(main(), allow=OSError)


def test_what_the_loop_reported_is_noted_on_the_test_s_own_failure(
    run: Callable[..., Any],
) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(broken)
        await asyncio.sleep(0)
        raise RuntimeError("own failure")

    with pytest.raises(RuntimeError, match="own failure") as caught:
        run(main())
    [note] = caught.value.__notes__
    assert "broken callback" in note


def test_the_deadline_is_a_failure(run: Callable[..., Any]) -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match=r"longer than 0\.01 s"):
        run(main(), timeout=0.01)


def test_a_timeout_of_the_test_s_own_passes_through(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run(main())


def test_a_stream_handler_that_the_end_cancels_is_no_error(run: Callable[..., Any]) -> None:
    handling = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.set()
        try:
            await asyncio.Event().wait()
        finally:
            writer.close()

    async def main() -> str:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await handling.wait()
        writer.close()
        await writer.wait_closed()
        server.close()
        return "done"

    assert run(main()) == "done"
