"""Run a coroutine on a loop of a chosen kind, and hear what the loop complains of.

Owns: which loops there are, the deadline, and the loop's exception handler:
what asyncio would only log (a callback that raised, a task's exception that
nobody took, a transport's fatal error) fails the test.
Leaves: the fixtures ``loop_kind`` and ``run`` to plugin.py.
"""

import asyncio
import traceback
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")
Context = dict[str, Any]

# Named outright: a policy that somebody set has no say in a test.
KINDS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


class LoopErrors:
    """A loop's exception handler that keeps what it is called with."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []

    def __call__(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self.contexts.append(context)

    def take(self) -> list[Context]:
        taken, self.contexts = self.contexts, []
        return taken


_handlers: list[LoopErrors] = []


def run(
    coro: Coroutine[Any, Any, T],
    *,
    loop: str = "asyncio",
    timeout: float = 30.0,
    allow: type[BaseException] | tuple[type[BaseException], ...] = (),
) -> T:
    """Run ``coro`` on a new loop of the kind ``loop`` and return its result.

    ``timeout``, in seconds, fails the test. Calls of the loop's exception
    handler fail it too, but for exceptions of the classes ``allow`` and for
    what the coroutine took with ``take_errors``.
    """
    handler = LoopErrors()
    _handlers.append(handler)
    try:
        with (
            warnings.catch_warnings(),
            asyncio.Runner(debug=False, loop_factory=KINDS[loop]) as runner,
        ):
            runner.get_loop().set_exception_handler(handler)
            try:
                result = runner.run(_before(timeout, coro))
            except BaseException:
                # A test that fails leaves things open. Where the warning of them is an
                # error, uvloop does not close them, and waits for their end for ever.
                warnings.simplefilter("ignore", ResourceWarning)
                raise
    except BaseException as error:
        for context in handler.take():
            error.add_note(describe(context))
        raise
    unexpected = [c for c in handler.take() if not is_cancelled_handler(c)]
    unexpected = [c for c in unexpected if not isinstance(c.get("exception"), allow)]
    if unexpected:
        raise AssertionError("\n".join(map(describe, unexpected)))
    return result


def is_cancelled_handler(context: Context) -> bool:
    """Tell whether this is asyncio's own report of a stream handler that was cancelled.

    CPython up to 3.12.1 asks the cancelled task for its exception, which raises.
    It happens to every ``asyncio.start_server`` whose connections outlive the loop.
    """
    return (
        isinstance(context.get("exception"), asyncio.CancelledError)
        and "StreamReaderProtocol.connection_made" in context["message"]
    )


def take_errors() -> list[Context]:
    """Return the contexts that the running loop's handler got so far, as expected ones."""
    handler = asyncio.get_running_loop().get_exception_handler()
    assert isinstance(handler, LoopErrors), "this loop was not started by tests.support.loops.run"
    return handler.take()


def late_errors() -> list[Context]:
    """Return what handlers got after their ``run`` ended; forget these handlers."""
    late = [context for handler in _handlers for context in handler.take()]
    _handlers.clear()
    return late


def describe(context: Context) -> str:
    """Say what the exception handler was told, with the traceback if there is one."""
    lines = [f"the event loop reports: {context.get('message', context)}\n"]
    if (error := context.get("exception")) is not None:
        lines += traceback.format_exception(error)
    return "".join(lines).rstrip()


async def _before(timeout: float, coro: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(timeout) as deadline:
            return await coro
    except TimeoutError as error:
        if deadline.expired():
            raise AssertionError(f"the test took longer than {timeout} s") from error
        raise
