"""``--threads auto``: what is called on the loop, what in threads, and what that does to others.

The clock that the rule looks at is turned by hand here, so a call takes as long as it says.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from pulsar.apps.wsgi import WSGIServer, auto
from pulsar.errors import ImproperlyConfigured
from tests.apps.wsgi.client import Client, request
from tests.apps.wsgi.serving import Served, served
from tests.apps.wsgi.test_streams import until
from tests.support.serving import PATIENCE

Run = Callable[..., Any]
Environ = dict[str, Any]

LOOP, THREAD = b"loop", b"thread"

# So many calls show that a kind is quick, and so many seconds later it has to show it again.
SAMPLE, BELIEVED = 32, 10.0


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.computed = 0.0
        self.delayed = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def compute(self, seconds: float) -> None:
        self.now += seconds
        self.computed += seconds

    def preempt(self, seconds: float) -> None:
        self.now += seconds
        self.delayed += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auto, "monotonic", lambda: clock.now)
    monkeypatch.setattr(auto, "thread_time", lambda: clock.computed)
    monkeypatch.setattr(auto, "delay", lambda thread: clock.delayed)
    return clock


class App:
    """Answers with where it was called; ``does`` has more to do for some paths."""

    def __init__(self, **does: Callable[[], object]) -> None:
        self.does = does
        self.loop = threading.get_ident()

    def here(self) -> bytes:
        return LOOP if threading.get_ident() == self.loop else THREAD

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert environ["wsgi.multithread"]
        name = environ["PATH_INFO"].strip("/")
        if name in self.does:
            self.does[name]()
        start_response("200 OK", [])
        return [self.here()]


class Gate:
    """Where calls wait until they are let through."""

    def __init__(self) -> None:
        self.waiting = 0
        self._open = threading.Event()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.waiting += 1
        assert self._open.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


async def where(client: Client, target: str = "/", *, method: str = "GET") -> bytes:
    """Where a request is answered."""
    await client.send(request(target, method=method))
    return (await client.answer(method)).body


async def wheres(client: Client, target: str = "/", number: int = SAMPLE) -> set[bytes]:
    return {await where(client, target) for _ in range(number)}


async def prove(client: Client, target: str = "/") -> None:
    """Show that requests for ``target`` are quick."""
    assert await wheres(client, target) == {THREAD}
    assert await where(client, target) == LOOP


async def connected(server: Served, number: int) -> list[Client]:
    return [await server.client() for _ in range(number)]


# The rule


def test_what_has_been_quick_runs_on_the_loop_for_a_while(run: Run, clock: Clock) -> None:
    async def main() -> None:
        app = App()
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            await prove(client)
            assert await wheres(client) == {LOOP}
            # Others have to show it themselves.
            assert await where(client, "/other") == THREAD
            assert await where(client, method="POST") == THREAD
            assert await where(client, "/?query") == LOOP
            clock.now += BELIEVED
            await prove(client)

    run(main())


def test_numbers_in_a_path_make_no_difference(run: Run, clock: Clock) -> None:
    async def main() -> None:
        app = App()
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            for number in range(SAMPLE):
                assert await where(client, f"/of{number}/item-{number}/{number}") == THREAD
            assert await where(client, "/of1/item-2/3") == LOOP
            assert await where(client, "/of7/0a-f/777") == LOOP
            for other in ("/of1/item-2/", "/of1/item-2/c", "/of/item-2/3", "/1", "/1/2/3/4"):
                assert await where(client, other) == THREAD

    run(main())


@pytest.mark.parametrize(
    ("way", "seconds", "place"),
    [
        ("wait", 0.00005, LOOP),
        ("wait", 0.0002, THREAD),
        ("compute", 0.0009, LOOP),
        ("compute", 0.0011, THREAD),
    ],
)
def test_what_is_quick(run: Run, clock: Clock, way: str, seconds: float, place: bytes) -> None:
    async def main() -> None:
        app = App(work=lambda: getattr(clock, way)(seconds))
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            assert await wheres(client, "/work") == {THREAD}
            assert await wheres(client, "/work") == {place}

    run(main())


def test_calls_are_quick_on_average(run: Run, clock: Clock) -> None:
    waits = [0.003, *[0.0] * (SAMPLE - 1), 0.004, *[0.0] * (SAMPLE - 1), *[0.0] * SAMPLE]

    async def main() -> None:
        left = iter(waits)
        app = App(work=lambda: clock.wait(next(left)))
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            assert await wheres(client, "/work") == {THREAD}
            assert await where(client, "/work") == LOOP
            clock.now += BELIEVED
            assert await wheres(client, "/work", SAMPLE - 1) == {THREAD}

    run(main())


def test_after_a_call_that_holds_up_the_loop_threads_do_everything(run: Run, clock: Clock) -> None:
    async def main() -> None:
        waits = iter([*[0.0] * SAMPLE, 0.5])
        app = App(work=lambda: clock.wait(next(waits, 0.0)))
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            await prove(client, "/other")
            assert await wheres(client, "/work") == {THREAD}
            assert await where(client, "/work") == LOOP  # which took half a second
            for path in ("/work", "/other"):
                assert await wheres(client, path, SAMPLE + 1) == {THREAD}
            # For a hundred times as long, whatever they show.
            clock.now += 49.9
            assert await wheres(client, "/work", 2 * SAMPLE - 2) == {THREAD}
            clock.now += 0.2
            assert await where(client, "/work") == THREAD
            assert await where(client, "/work") == LOOP

    run(main())


def test_calls_that_get_slower_are_for_threads_again(run: Run, clock: Clock) -> None:
    async def main() -> None:
        waits = iter([*[0.0] * SAMPLE, *[0.003] * 7])
        app = App(work=lambda: clock.wait(next(waits, 0.0)))
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            await prove(client, "/other")
            assert await wheres(client, "/work") == {THREAD}
            # So much in all they may hold it up.
            assert await wheres(client, "/work", 7) == {LOOP}
            await prove(client, "/work")
            assert await where(client, "/other") == LOOP

    run(main())


def test_what_the_kernel_does_to_a_call_does_not_count(run: Run, clock: Clock) -> None:
    async def main() -> None:
        app = App()
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            clock.delayed = 500.0  # which was before
            await prove(client)
            app.does[""] = lambda: clock.preempt(0.5)
            assert await wheres(client, number=10) == {LOOP}
            app.does[""] = lambda: clock.wait(0.021)
            assert await where(client) == LOOP
            assert await where(client) == THREAD

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_how_long_a_thread_has_waited_for_a_processor() -> None:
    before, began, computed = (
        auto.delay(threading.get_native_id()),
        time.monotonic(),
        time.thread_time(),
    )
    while time.monotonic() - began < 0.05:
        pass
    took, computed = time.monotonic() - began, time.thread_time() - computed
    delayed = auto.delay(threading.get_native_id()) - before
    assert 0 <= delayed <= took + 0.01
    assert computed + delayed > took / 2
    assert auto.delay(0) == 0.0


def test_how_much_of_the_time_the_loop_stands_still_at_most(run: Run, clock: Clock) -> None:
    async def main() -> None:
        chance = random.Random(1)
        held = 0.0

        def work() -> None:
            nonlocal held
            if chance.random() < 0.02:
                clock.wait(0.5)
                held += 0.5 if app.here() == LOOP else 0.0

        app = App(work=work)
        began = clock.now
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            for _ in range(1500):
                clock.now += 0.1
                await where(client, "/work")
        assert 1.0 <= held <= 0.5 + (clock.now - began) / 100

    run(main())


def test_what_is_known_has_a_bound(run: Run, clock: Clock) -> None:
    async def main() -> None:
        app = App()
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            long = "/" + 300 * "a"
            assert await wheres(client, long, SAMPLE + 1) == {THREAD}
            await prove(client)
            threads: Any = server.application._site.threads  # type: ignore[union-attr]
            for number in range(1500):
                # In letters, or they would be alike.
                path = f"/{number:x}".translate(str.maketrans("0123456789", "ghijklmnop"))
                assert await where(client, path) == THREAD
                assert len(threads._kinds) <= 1024
                assert len(threads._general) <= 1024
            await prove(client)

    run(main())


# What others notice


def test_a_request_that_waits_holds_up_nobody(run: Run) -> None:
    """With the real clock."""

    async def main() -> None:
        gate = Gate()
        app = App(waits=gate)
        async with (
            served(app, thread_workers="auto") as server,
            await server.client() as slow,
            await server.client() as client,
        ):
            await slow.send(request("/waits"))
            await until(lambda: gate.waiting, "it is in progress")
            seen = set()
            async with asyncio.timeout(PATIENCE):
                while LOOP not in seen:
                    seen.add(await where(client))
            assert THREAD in seen
            gate.open()
            assert (await slow.answer()).body == THREAD

    run(main())


def test_what_is_quick_is_answered_while_all_threads_wait(run: Run, clock: Clock) -> None:
    async def main() -> None:
        gate = Gate()
        app = App(waits=gate)
        async with served(app, thread_workers="auto:2") as server:
            client, *slow = await connected(server, 5)
            await prove(client)
            for each in slow:
                await each.send(request("/waits"))
            threads: Any = server.application._site.threads  # type: ignore[union-attr]
            await until(lambda: threads._jobs.qsize() == 2, "the threads wait, and so do others")
            assert gate.waiting == 2
            # It cannot show it again.
            clock.now += BELIEVED
            assert await wheres(client) == {LOOP}
            gate.open()
            for each in slow:
                assert (await each.answer()).body == THREAD
            clock.now += BELIEVED
            assert await where(client) == THREAD
            for each in (client, *slow):
                each.sock.close()

    run(main())


def test_a_pipeline_waits_behind_the_requests_of_others(run: Run) -> None:
    async def main() -> None:
        gate = Gate()
        order: list[str] = []

        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            gate()
            order.append(environ["PATH_INFO"])
            start_response("200 OK", [])
            return []

        async with served(app, thread_workers=1) as server:
            greedy, *others = await connected(server, 4)
            await greedy.send(request("/greedy") * 20)
            await until(lambda: gate.waiting, "it is in progress")
            for each in others:
                await each.send(request("/other"))
            threads: Any = server.application._site.threads  # type: ignore[union-attr]
            await until(lambda: threads._jobs.qsize() == 3, "they are in the queue")
            gate.open()
            for each in others:
                await each.answer()
            for _ in range(20):
                await greedy.answer()
            assert order == ["/greedy", *["/other"] * 3, *["/greedy"] * 19]
            for each in (greedy, *others):
                each.sock.close()

    run(main())


# What the application notices


def test_a_body_in_pieces_comes_from_one_place(run: Run, clock: Clock) -> None:
    async def main() -> None:
        app = App()

        class Pieces:
            def __init__(self, start_response: Any) -> None:
                start_response("200 OK", [])
                self.places = [app.here()]

            def __iter__(self) -> Iterator[bytes]:
                for _ in range(3):
                    self.places.append(app.here())
                    yield self.places[-1]

            def close(self) -> None:
                closed.append([*self.places, app.here()])

        closed: list[list[bytes]] = []

        def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
            return Pieces(start_response)

        async with (
            served(application, thread_workers="auto") as server,
            await server.client() as client,
        ):
            for number in range(1, SAMPLE + 1):
                assert await where(client) == THREAD * 3
                await until(lambda number=number: len(closed) == number, "it is closed")
            threads: Any = server.application._site.threads  # type: ignore[union-attr]
            # Its thread has closed it before it says how long that took.
            [kind] = threads._general.values()
            await until(lambda: kind.until, "it is known to be quick")
            assert await where(client) == LOOP * 3
            assert closed == [[THREAD] * 5] * SAMPLE + [[LOOP] * 5]

    run(main())


def test_who_goes_on_in_a_task_is_for_threads(run: Run, clock: Clock) -> None:
    async def main() -> None:
        app = App()
        # More than the kernel takes for a client that does not read.
        pieces = 400
        large = False

        def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            for _ in range(pieces if large else 1):
                yield app.here().ljust(65536)

        async with (
            served(application, thread_workers="auto") as server,
            await server.client(window=4096) as slow,
            await server.client() as client,
        ):
            threads: Any = server.application._site.threads  # type: ignore[union-attr]
            async with asyncio.timeout(PATIENCE):
                while (await where(client)).strip() == THREAD:
                    pass
            large = True
            [kind] = threads._general.values()
            await slow.send(request())
            await until(lambda: not kind.until, "it is left for a task")
            large = False
            assert (await where(client)).strip() == THREAD
            body = (await slow.answer()).body
            assert (len(body), body.split()[0]) == (pieces * 65536, LOOP)

    run(main())


def test_errors_are_answered_wherever_they_come_from(
    run: Run, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        places = []

        def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
            places.append(app.here())
            raise LookupError

        app = App()
        async with served(application, thread_workers="auto") as server:
            for _ in range(SAMPLE + 1):
                async with await server.client() as client:
                    await client.send(request())
                    assert (await client.answer()).status == 500
        assert places == [THREAD] * SAMPLE + [LOOP]

    run(main())
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError] * (
        SAMPLE + 1
    )


def test_what_belongs_to_a_thread_or_a_context_stays_there(run: Run) -> None:
    """Many clients at once, with the real clock: on the loop, and in threads."""
    local = threading.local()
    current: ContextVar[str] = ContextVar("current")
    places: set[bytes] = set()

    async def main() -> None:
        app = App()

        def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            who = environ["QUERY_STRING"]
            local.owner = getattr(local, "owner", threading.get_ident())
            token = current.set(who)
            places.add(app.here())
            start_response("200 OK", [])
            for _ in range(100):
                assert (local.owner, current.get()) == (threading.get_ident(), who)
            current.reset(token)
            return [who.encode()]

        async def ask(server: Served, who: str) -> None:
            async with await server.client() as client:
                while len(places) < 2:
                    assert await where(client, f"/?{who}") == who.encode()

        async with served(application, thread_workers="auto") as server:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*[ask(server, str(number)) for number in range(8)])

    run(main())
    assert places == {LOOP, THREAD}


def test_an_upgrade_is_a_thread_s_call_whatever_is_known(run: Run, clock: Clock) -> None:
    async def main() -> None:
        app = App()
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            await prove(client)
            await client.send(request("/", "Connection: upgrade", "Upgrade: h2c"))
            assert (await client.answer()).body == THREAD
            assert await where(client) == LOOP

    run(main())


def test_async_applications_are_not_concerned(run: Run) -> None:
    async def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert not environ["wsgi.multithread"]
        await asyncio.sleep(0)
        start_response("200 OK", [])
        return [threading.current_thread().name.encode()]

    async def main() -> None:
        async with served(app, thread_workers="auto") as server, await server.client() as client:
            assert await where(client) == threading.current_thread().name.encode()

    run(main())


# The setting


@pytest.mark.parametrize(
    ("value", "number"),
    [("auto", 8), ("auto:3", 3), (" auto:1 ", 1), ("4", 4), (2, 2)],
)
def test_how_many_threads(value: Any, number: int) -> None:
    server = WSGIServer(App(), load_config=False, thread_workers=value)
    server.protocol_factory()
    site: Any = server._site
    assert site.threads.number == number
    assert site.heads.constants["wsgi.multithread"]


@pytest.mark.parametrize("value", ["auto:", "auto:0", "auto:x", "automatic", "-1", 1.5, True])
def test_what_is_no_number_of_threads(value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"thread_workers.*give.*auto, or auto:NUMBER"):
        WSGIServer(App(), load_config=False, thread_workers=value)
