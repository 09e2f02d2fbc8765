"""Flow control: pausing, those who wait, and what ``write`` returns."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.errors import ConnectionClosed, FlowControlError, PulsarException
from pulsar.protocols import FlowControl
from pulsar.protocols.flow import LOST, WRITTEN, Lost, Written
from tests.support.transport import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable


# -- what write returns


@pytest.mark.parametrize("returned", [WRITTEN, LOST, Written(), Lost()])
def test_what_write_returns_is_an_empty_tuple(returned: Written) -> None:
    assert isinstance(returned, tuple)
    assert not returned
    assert returned == ()
    assert len(returned) == 0
    assert copy.copy(returned) == ()


def test_awaiting_written_returns_at_once(run: Callable[..., Any]) -> None:
    async def main() -> None:
        turned = False

        def turn() -> None:
            nonlocal turned
            turned = True

        asyncio.get_running_loop().call_soon(turn)
        for _ in range(3):  # one object serves everybody
            await WRITTEN
        assert not turned
        assert await asyncio.wait_for(WRITTEN, 1) is None

    run(main())


def test_awaiting_lost_raises(run: Callable[..., Any]) -> None:
    async def main() -> None:
        for _ in range(3):
            with pytest.raises(ConnectionClosed) as raised:
                await LOST
            assert str(raised.value) == "the connection is closed: nothing can be written to it"
            assert isinstance(raised.value, ConnectionError)

    run(main())


# -- pausing


def test_pausing_twice_in_a_row_fails() -> None:
    flow = FlowControl()
    assert not flow.writing_paused
    flow.pause_writing()
    assert flow.writing_paused
    with pytest.raises(FlowControlError, match="pause_writing"):
        flow.pause_writing()
    assert flow.writing_paused


def test_resuming_twice_in_a_row_fails() -> None:
    flow = FlowControl()
    with pytest.raises(FlowControlError, match="resume_writing"):
        flow.resume_writing()
    flow.pause_writing()
    flow.resume_writing()
    assert not flow.writing_paused
    with pytest.raises(FlowControlError, match="resume_writing"):
        flow.resume_writing()


def test_a_flow_control_error_is_both_kinds() -> None:
    assert issubclass(FlowControlError, PulsarException)
    assert issubclass(FlowControlError, RuntimeError)


def test_pausing_again_and_again_in_turn() -> None:
    flow = FlowControl()
    for _ in range(3):
        flow.pause_writing()
        flow.resume_writing()


# -- those who wait


def test_everybody_who_waits_goes_on(run: Callable[..., Any]) -> None:
    async def main() -> None:
        flow = FlowControl()
        flow.pause_writing()
        waiters = [flow.write_waiter() for _ in range(3)]
        assert len(set(waiters)) == 3
        await asyncio.sleep(0)
        assert not any(waiter.done() for waiter in waiters)
        flow.resume_writing()
        assert await asyncio.gather(*waiters) == [None, None, None]

    run(main())


def test_everybody_who_waits_fails_with_the_reason(run: Callable[..., Any]) -> None:
    async def main() -> None:
        flow = FlowControl()
        flow.pause_writing()
        waiters = [flow.write_waiter() for _ in range(2)]
        error = ConnectionResetError()
        flow.resume_writing(error)
        for waiter in waiters:
            with pytest.raises(ConnectionResetError) as raised:
                await waiter
            assert raised.value is error
        assert not flow.writing_paused

    run(main())


def test_cancelling_one_does_not_disturb_the_others(run: Callable[..., Any]) -> None:
    async def main() -> None:
        flow = FlowControl()
        flow.pause_writing()

        async def wait() -> None:
            await flow.write_waiter()

        tasks = [asyncio.get_running_loop().create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [True, False, False]
        flow.resume_writing()
        await asyncio.gather(*tasks[1:])

    run(main())


def test_those_whom_nobody_awaits_are_forgotten(run: Callable[..., Any]) -> None:
    async def main() -> None:
        flow = FlowControl()
        flow.pause_writing()
        for _ in range(1000):
            flow.write_waiter()
        kept = flow.write_waiter()
        assert list(flow._write_waiters or ()) == [kept]
        flow.resume_writing(ConnectionResetError())
        kept.exception()

    run(main())


def test_who_waited_before_has_nothing_to_do_with_the_next_pause(run: Callable[..., Any]) -> None:
    async def main() -> None:
        flow = FlowControl()
        flow.pause_writing()
        first = flow.write_waiter()
        flow.resume_writing()
        flow.pause_writing()
        second = flow.write_waiter()
        await first
        assert not second.done()
        flow.resume_writing()
        await second

    run(main())


# -- limits


@pytest.mark.parametrize(
    ("options", "high", "low"),
    [
        ({}, 64 * 1024, 16 * 1024),  # the transport's own
        ({"high_limit": 1000}, 1000, 250),
        ({"high_limit": 1000, "low_limit": 10}, 1000, 10),
        ({"low_limit": 0, "high_limit": 0}, 0, 0),
    ],
)
def test_limits(options: dict[str, int], high: int, low: int) -> None:
    transport = FakeTransport()
    FlowControl(**options).set_write_limits(transport)
    assert (transport.high, transport.low) == (high, low)


def test_it_is_a_mixin_for_any_protocol(run: Callable[..., Any]) -> None:
    class Mine(FlowControl, asyncio.Protocol):
        def __init__(self, name: str, **kw: Any) -> None:
            super().__init__(**kw)
            self.name = name

        def connection_made(self, transport: Any) -> None:
            self.set_write_limits(transport)
            self.transport = transport

        async def stream(self) -> None:
            for _ in range(3):
                self.transport.write(b"x" * 11)
                if self.writing_paused:
                    await self.write_waiter()

    async def main() -> None:
        protocol = Mine("mine", high_limit=10)
        transport = FakeTransport(protocol)
        transport.clogged = True
        protocol.connection_made(transport)
        task = asyncio.get_running_loop().create_task(protocol.stream())
        for count in (1, 2, 3):
            while protocol._write_waiters is None:
                await asyncio.sleep(0)
            assert len(transport.written) == count
            transport.drain(11)
        await task

    run(main())
