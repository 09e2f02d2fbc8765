"""A forked process as the arbiter sees it: how long it was silent, and how its end is told."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pulsar.actors import processes
from pulsar.actors.forkserver import Order
from pulsar.actors.mailbox import new_framer
from pulsar.actors.message import Note, encode
from pulsar.actors.processes import BootFailed, Process
from pulsar.actors.router import Router

Run = Callable[..., Any]

ORDER = Order("shop.0-1", "shop.0", 1, 0, 0, False, 5.0, 0, [], b"")


@contextmanager
def forked(pid: int | None = None) -> Iterator[tuple[Process, Callable[..., None], list[Note]]]:
    """A process that is not there, its voice, and what it has said that others must hear."""
    generation = SimpleNamespace(workers=0, alive=True, tell=lambda *_: None)
    heard: list[Note] = []
    process = Process(
        ORDER,
        cast("Any", generation),
        Router(),
        lambda _process, note: heard.append(note),
        reaped=None,
    )
    with process._end_of_mailbox.dup() as voice:
        process.fork()
        assert generation.workers == 1
        if pid is not None:
            process.has_pid(pid)

        def say(name: str, **data: Any) -> None:
            voice.sendall(new_framer().encode(encode(Note(name, data))))

        try:
            yield process, say, heard
        finally:
            process.has_exited(None)
    assert generation.workers == 0


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.fixture
def starved(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """For how many seconds the process has had no processor."""
    delay = {"": 100.0}
    monkeypatch.setattr(processes, "run_delay", lambda pid: delay[""])
    return delay


def test_who_gets_no_processor_is_not_silent(run: Run, starved: dict[str, float]) -> None:
    async def main() -> None:
        with forked(os.getpid()) as (process, say, _):
            heard = process.mailbox.heard
            assert process.silent(heard + 1, 10) == pytest.approx(1)
            # Looked at from half of the timeout on: what was before was not counted.
            assert process.silent(heard + 6, 10) == pytest.approx(6)
            starved[""] += 8
            assert process.silent(heard + 15, 10) == pytest.approx(7)
            starved[""] += 1
            assert process.silent(heard + 20, 10) == pytest.approx(11)
            say("beat", connections=3)
            await until(lambda: process.figures)
            heard = process.mailbox.heard
            assert process.silent(heard + 6, 10) == pytest.approx(6)

    run(main())


def test_who_is_not_listened_to_is_not_silent(run: Run) -> None:
    async def main() -> None:
        with forked() as (process, _, _):
            later = process.mailbox.heard + 100
            assert process.silent(later, 10) == pytest.approx(100)
            process.mailbox.hold()
            assert process.silent(later, 10) == 0.0
            process.mailbox.let_go()

    run(main())


def test_its_life_as_it_tells_it(run: Run) -> None:
    async def main() -> None:
        with forked() as (process, say, heard):
            assert (process.state, process.serving, process.title) == ("starting", False, "shop.0")
            say("hello", pid=7)
            say("booted")
            await process.until_booted(20)
            assert not process.ready.done()
            say("ready", connections=0)
            await process.until_ready(20)
            assert (process.state, process.serving, process.title) == (
                "running",
                True,
                "shop.0 (7)",
            )
            say("retire", reason="it is old")
            await until(lambda: heard)
            assert heard == [Note("retire", {"reason": "it is old"})]
            asked = asyncio.create_task(process.ask("adopt", "adopted", 3, {}))
            await until(lambda: process._answers)
            say("adopted", id=2)
            say("adopted", id=3)
            await asked
            process.stop(5.0, [])
            assert (process.state, process.serving, process.asked) == ("draining", False, True)
            say("draining")
            await process.until_draining(20)
            assert len(heard) == 1

    run(main())


def test_who_does_not_answer_any_more(run: Run) -> None:
    async def main() -> None:
        with forked() as (process, _, _):
            asked = asyncio.create_task(process.ask("adopt", "adopted", 3, {}))
            await asyncio.sleep(0)
            process.has_exited(0)
            await asked
            assert process._answers == {}
            assert await process.dump() == ""
            process.signal(signal.SIGTERM)
            process.tell("stop")

    run(main())


@pytest.mark.parametrize(
    ("said", "killed_for", "status", "text", "signalled"),
    [
        (None, None, 7 << 8, "shop.0 (7) exited with code 7", False),
        (None, None, 9, "shop.0 (7) killed by SIGKILL, perhaps out of memory", True),
        (None, None, 11, "shop.0 (7) killed by SIGSEGV", True),
        (None, None, None, "shop.0 (7) could not be forked", False),
        ("no database", None, 3 << 8, "no database", False),
        ("no database", "it was slow", 9, "shop.0 (7) was killed: it was slow", False),
    ],
)
def test_why_it_has_ended(
    run: Run,
    said: str | None,
    killed_for: str | None,
    status: int | None,
    text: str,
    signalled: bool,
) -> None:
    async def main() -> None:
        with forked() as (process, say, _):
            say("hello", pid=7)
            if said is not None:
                # Its last words are heard, even when its end is known before.
                say("failed", text=said)
            await until(lambda: process.pid)
            process.killed_for = killed_for
            waiting = asyncio.create_task(process.until_ready(20))
            await asyncio.sleep(0)
            process.has_exited(status)
            with pytest.raises(BootFailed) as caught:
                await waiting
            assert (str(caught.value), caught.value.signalled) == (text, signalled)
            assert process.describe_end() == text
            # The second time is one too many.
            process.has_exited(0)
            assert process.status == status

    run(main())


def test_who_takes_too_long_is_killed(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []

    async def main() -> None:
        with forked() as (process, _, _):
            monkeypatch.setattr(process, "signal", signals.append)
            process.has_pid(7)
            waiting = asyncio.create_task(process.until_ready(0.05))
            await until(lambda: signal.SIGKILL in signals)
            process.has_exited(9)
            with pytest.raises(BootFailed, match=r"longer than 0\.05 s to start") as caught:
                await waiting
            assert not caught.value.signalled

    run(main())
    assert signals == [processes.DUMP_SIGNAL, signal.SIGKILL]
    assert "the stacks of shop.0 (7):\nit does not answer" in caplog.text
