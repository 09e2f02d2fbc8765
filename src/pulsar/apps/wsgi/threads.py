"""Threads that call an application, and what they say to the loop.

Owns: ``Threads``, a few threads and their queue; ``ThreadCall``, one call in one of them.
Leaves: everything that touches a connection to ``response``, on the loop.

Theory of operation. A thread runs one request after the other, in the order of their
arrival. What it sends is put where the loop finds it, and the loop is woken once for
whatever was put there before it comes. So for requests that are answered quickly the
threads and the loop take turns by the batch, not by the request. Who sends more than the
client reads waits in ``ThreadCall.send``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ...errors import ConnectionClosed, PulsarException
from ...wire.http11 import has_body
from .delivery import (
    close_iterable,
    deliver,
    is_awaitable,
    is_for_the_loop,
    trailers_of,
    whole_body,
)

if TYPE_CHECKING:
    from .response import HttpServerResponse

__all__ = ["ThreadCall", "Threads"]

logger = logging.getLogger("pulsar.wsgi")

# Bytes that a thread may be ahead of what the client has taken.
_AHEAD = 128 * 1024

# Seconds between looks at threads that are about to end.
_LOOK = 0.005


class Threads:
    """``number`` threads. They start when they are needed, and end with the process.

    ``take``, ``submit`` and ``close`` are for the loop; ``tell`` and ``call_soon`` for the
    threads.
    """

    #: The one that calls ``submit``, and the number that the kernel has for its thread.
    loop: asyncio.AbstractEventLoop
    loop_thread: int

    def __init__(self, number: int) -> None:
        self.number = number
        #: The application may be called while another call of it runs.
        self.parallel = number > 1
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._told: deque[ThreadCall] = deque()
        # The loop has been woken, and has not looked yet.
        self._woken = False
        #: So many answer requests whose bodies are still coming.
        self.waiting = 0

    def take(self, response: HttpServerResponse, environ: dict[str, Any]) -> None:
        """Have ``response``'s application called, with ``environ``."""
        self.hand_over(response, ThreadCall(response, environ, self))

    def hand_over(self, response: HttpServerResponse, call: ThreadCall) -> None:
        """Have ``call`` run in a thread. What comes on the connection meanwhile waits."""
        response.threaded = True
        response.call = call
        call.hold()
        self.submit(call.run)

    def may_wait(self) -> bool:
        """True when one more may answer a request whose body is still coming."""
        return self.waiting < self.number // 2

    def take_early(self, response: HttpServerResponse, environ: dict[str, Any]) -> None:
        """The same as ``take`` while the body is still coming; then ``ThreadCall.hold``."""
        response.threaded = True
        call = response.call = ThreadCall(response, environ, self)
        self.submit(call.run)

    def waited(self, task: object) -> None:
        """One fewer does: its body is complete, or nobody wants the rest."""
        self.waiting -= 1

    def submit(self, job: Callable[[], None]) -> None:
        """Have ``job`` called in a thread; it must not raise."""
        if len(self._threads) < self.number:
            self.loop = asyncio.get_running_loop()
            self.loop_thread = threading.get_native_id()
            # Daemons: a call that never returns must not keep the process from its end.
            name = f"wsgi-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        get = self._jobs.get
        while (job := get()) is not None:
            job()
            del job  # or it lives until the next one comes

    def tell(self, call: ThreadCall) -> None:
        """Let the loop look at ``call``."""
        self._told.append(call)
        if not self._woken:
            self._woken = True
            self.call_soon(self._collect)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have ``callback`` called on the loop, if it still runs."""
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            pass  # closed: the process is about to end

    def _collect(self) -> None:
        self._woken = False
        told = self._told
        for _ in range(len(told)):
            call = told.popleft()
            try:
                call.collect()
            except Exception:
                logger.exception("an answer from a thread cannot be sent")

    async def close(self, timeout: float) -> None:
        """Let the threads end, when they have nothing left to do; wait ``timeout`` seconds."""
        for _ in self._threads:
            self._jobs.put(None)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while busy := [thread for thread in self._threads if thread.is_alive()]:
            if loop.time() >= deadline:
                logger.warning("%d threads are still busy with the application", len(busy))
                break
            await asyncio.sleep(_LOOK)


class ThreadCall:
    """One call of the application, in a thread.

    Each attribute is written by one side only: the thread, or the loop.
    """

    __slots__ = (
        "_answered",
        "_awaited",
        "_bodiless",
        "_ended",
        "_environ",
        "_error",
        "_held",
        "_lost",
        "_over",
        "_pieces",
        "_response",
        "_result",
        "_room",
        "_sent",
        "_taken",
        "_trailers",
        "_waiter",
        "committed",
        "threads",
    )

    def __init__(
        self, response: HttpServerResponse, environ: dict[str, Any], threads: Threads
    ) -> None:
        self.threads = threads
        self._response = response

        # The thread's.
        self._environ: dict[str, Any] | None = environ
        # What was sent and is not taken yet; how many bytes were sent in all.
        self._pieces: deque[bytes] = deque()
        self._sent = 0
        # Set when there is room for more; made when it is needed.
        self._room: threading.Event | None = None
        #: Something has been sent: the status and the headers are settled.
        self.committed = False
        # ... and nothing can follow them.
        self._bodiless = False
        # The body is complete, with these trailers.
        self._ended = False
        self._trailers: Sequence[tuple[str, str]] = ()
        # What the loop awaits for it.
        self._awaited: Future[bytes] | None = None
        # For the loop to deliver.
        self._result: Any = None
        self._error: BaseException | None = None
        # The thread has done with it.
        self._over = False

        # The loop's. Bytes that are on their way to the client.
        self._taken = 0
        # Done when the client reads again.
        self._waiter: asyncio.Future[None] | None = None
        # The response is complete, or delivered without us.
        self._answered = False
        # The client has gone.
        self._lost = False
        # What comes on the connection waits.
        self._held = False

    # In the thread

    def run(self) -> None:
        """Call the application and send what it returns."""
        environ, self._environ = self._environ, None
        if not self._lost:
            try:
                self._call(environ)
            except BaseException as exc:
                self._error = exc
        self._over = True
        self.threads.tell(self)

    def _call(self, environ: dict[str, Any] | None) -> None:
        response = self._response
        result = response.site.application(environ, response.start_response)
        body = whole_body(result)
        if body is not None:
            self._pieces.append(body)
            self._ended = True
        elif is_for_the_loop(result) or type(result) in {list, tuple}:
            self._result = result
        else:
            try:
                self._iterate(result)
            finally:
                close_iterable(result)

    def _iterate(self, result: Any) -> None:
        for piece in result:
            self.send(self._await(piece) if is_awaitable(piece) else piece)
            if self._bodiless:
                break
        self._trailers = trailers_of(result)
        self._ended = True
        self._tell()  # close() may take its time

    def _await(self, awaitable: Awaitable[bytes]) -> bytes:
        """What ``awaitable`` gives on the loop."""

        body = self._response.coming
        if body is not None:
            body.gather()  # on the loop nobody may wait for it

        async def wait() -> bytes:
            return await awaitable

        self._awaited = asyncio.run_coroutine_threadsafe(wait(), self.threads.loop)
        if self._lost:
            self._awaited.cancel()
        try:
            return self._awaited.result()
        except CancelledError:
            if self._lost:
                raise _gone() from None
            raise
        finally:
            self._awaited = None

    def send(self, data: bytes, force: bool = False) -> None:
        """Send a piece of the body; returns when there is room for more.

        Raises ``ConnectionClosed`` when the client has gone.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"an application's body is made of bytes, not of {type(data).__name__}")
        if self._lost:
            raise _gone()
        if not self.committed:
            self._commit(data or force)
        if not data and not force:
            return
        self._pieces.append(data)
        self._sent += len(data)
        self._tell()
        if self._sent - self._taken > _AHEAD:
            self._wait()

    def _tell(self) -> None:
        self.threads.tell(self)

    def _commit(self, settled: object) -> None:
        plan = self._response.plan
        if plan is None:
            raise PulsarException("the application has sent a body before start_response")
        if settled:
            self._bodiless = not has_body(self._response.request.method, plan.code)
            self.committed = True

    def _wait(self) -> None:
        room = self._room
        if room is None:
            room = self._room = threading.Event()
        while self._sent - self._taken > _AHEAD and not self._lost:
            room.clear()
            if self._sent - self._taken > _AHEAD and not self._lost:
                room.wait()
        if self._lost:
            raise _gone()

    # On the loop

    def hold(self) -> None:
        """Keep what comes on the connection until the response is complete."""
        self._held = True
        self._response.connection.hold()  # type: ignore[union-attr]

    def lose(self) -> None:
        """The client has gone: the thread is told when it sends something."""
        self._lost = True
        self._make_room()
        awaited = self._awaited
        if awaited is not None:
            awaited.cancel()
        if self._over:
            self.threads.tell(self)  # it waited for the body: nobody else buries it

    def collect(self) -> None:
        """Take over what the thread has put there."""
        response = self._response
        # In the opposite order of the thread's, so that nothing before the end is missed.
        over, ended = self._over, self._ended
        connection = response.connection
        assert connection is not None
        if not (self._answered or self._lost or self._waiter):
            connection.cork()
            try:
                self._answered = self._send(ended, over)
            except Exception as exc:
                self._answered = True
                response.fail(exc)
            finally:
                connection.uncork()
            if self._answered and self._held:
                connection.release()
        if over and (self._answered or self._lost):
            self._bury()

    def _send(self, ended: bool, over: bool) -> bool:
        """Send what there is; True: the response is complete, or goes on without us."""
        response = self._response
        pieces = self._pieces
        data = b"".join([pieces.popleft() for _ in range(len(pieces))])
        if ended and not self.committed:
            response.answer(data)
            return True
        if data or (self.committed and response.headers_sent is None):
            waiter = response.send(data, True)
            if waiter and not ended:
                self._waiter = waiter
                waiter.add_done_callback(self._go_on)
        self._taken += len(data)
        self._make_room()
        if ended:
            response.end(self._trailers)
        elif not over or self._waiter is not None:
            return False
        elif self._error is not None:
            error, self._error = self._error, None
            response.fail(error)
        elif response.collect_body():
            result, self._result = self._result, None
            response.call = None
            deliver(response, result)
        else:
            return False
        return True

    def _go_on(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        self.collect()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()

    def _bury(self) -> None:
        """The thread has done with the request, and so has the client."""
        response = self._response
        response.call = None
        result, self._result = self._result, None
        if result is not None:
            close_iterable(result)
        error, self._error = self._error, None
        if error is not None and not isinstance(error, ConnectionClosed):
            if self._answered:
                logger.error("close() of what the application has returned failed", exc_info=error)
            else:
                response.fail(error)
        elif self._lost:
            response.close_all()


def _gone() -> ConnectionClosed:
    return ConnectionClosed("the client has gone")
