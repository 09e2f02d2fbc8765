"""``--threads auto``: which calls of an application run on the loop, and which in threads.

Owns: the rule, and what it knows of an application: ``AutoThreads``.
Leaves: the threads and their calls to ``threads``.

Theory of operation. What a thread costs more than the loop is a few microseconds, which
matters to a call that takes no more than that; what a call that waits costs on the loop is
the time of all clients. So a call is for the loop where those like it were quick, and for
a thread where that is not known. A call that is running cannot be moved: one that waits
where those before it did not holds the loop up once, and is answered for by all.
"""

from __future__ import annotations

import re
import threading
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

from .threads import ThreadCall, Threads

if TYPE_CHECKING:
    from ...wire.http11 import Request
    from .response import HttpServerResponse

__all__ = ["AutoThreads"]

# Seconds. Calls are quick that on average take no longer, and of that do not wait for
# longer. For one that computes longer a thread makes no difference; while one waits, others
# could run.
_QUICK = 0.001
_WAIT = 0.0001

# So many calls in threads show whether a kind is quick, and it is believed for so many
# seconds.
_SAMPLE = 32
_BELIEVED = 10.0

# Seconds that calls of a kind that are not quick may hold up the loop in that time. One
# that alone does it for longer is answered for by all: nothing is called on the loop for so
# many times as long.
_CREDIT = 0.02
_PENALTY = 100

# Seconds without the end of a call after which threads with calls behind them all wait.
_STUCK = 0.1

# Full, a table is emptied: what was in it has to show again that it is quick. A longer
# path is not kept.
_KNOWN = 1024
_LONGEST = 256

# Parts of a path that are likely to name one thing of many.
_NUMBERED = re.compile(r"[^/]*[0-9][^/]*")


def delay(thread: int) -> float:
    """Seconds for which a thread of ours was ready to run, and had no processor; 0 if unknown.

    :param thread: the kernel's number of it
    """
    try:
        with open(f"/proc/self/task/{thread}/schedstat", "rb") as file:  # noqa: PTH123 - quicker
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0  # no Linux


class Kind:
    """Requests that are alike: what is known about their calls."""

    __slots__ = ("calls", "credit", "took", "until", "waited")

    def __init__(self) -> None:
        #: Of calls in threads since it was last judged: how many, and their seconds.
        self.calls = 0
        self.took = self.waited = 0.0
        #: Calls are for the loop until then, by the monotonic clock ...
        self.until = 0.0
        #: ... or until they have held it up for so many seconds.
        self.credit = 0.0


class AutoThreads(Threads):
    """Threads for the calls that are not known to be quick; the others run on the loop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.parallel = True  # the loop beside one thread, if there is no more
        # By method and path; by method and path without numbers.
        self._kinds: dict[tuple[str, str], Kind] = {}
        self._general: dict[tuple[str, str], Kind] = {}
        # Nothing is called on the loop before that, by the monotonic clock.
        self._not_before = 0.0
        # What the threads say of a kind.
        self._lock = threading.Lock()
        # When a call in one of them has ended.
        self._ran_last = 0.0
        # What ``delay`` has said of the loop.
        self._delay = 0.0

    def take(self, response: HttpServerResponse, environ: dict[str, Any]) -> None:
        """See ``Threads.take``; or call the application at once."""
        request = response.request
        kind = self._kinds.get((request.method, request.path)) or self._look_at(request)
        now = monotonic()
        if (now >= kind.until and not self._renew(kind, now)) or request.upgrade:
            self.hand_over(response, TimedCall(response, environ, self, kind))
            return
        response.threaded = False
        response.call_here(environ)
        unfinished = response.iterable is not None
        took = monotonic() - now
        if took > _QUICK or unfinished:
            self._held_up(kind, took, unfinished)

    def _look_at(self, request: Request) -> Kind:
        """The kind of a request, where its own path is not known."""
        kinds, method, path = self._kinds, request.method, request.path
        front, _, last = path.rpartition("/")
        if last.isdigit():
            # The same as below, for what is most frequent.
            path = f"{front}/0"
            kind = kinds.get((method, path))
            if kind is not None:
                return kind
        if len(path) > _LONGEST:
            return Kind()
        key = method, _NUMBERED.sub("0", path)
        kind = self._general.get(key)
        if kind is None:
            if len(self._general) >= _KNOWN:
                self._forget()
            kind = self._general[key] = Kind()
        if len(kinds) >= _KNOWN:
            kinds.clear()
        kinds[method, path] = kind
        return kind

    def _renew(self, kind: Kind, now: float) -> bool:
        """Go on believing that a kind is quick, where no thread is there to show it."""
        if not (kind.until and self._jobs.qsize() and now - self._ran_last > _STUCK):
            return False
        kind.until = now + _BELIEVED
        return True

    def _held_up(self, kind: Kind, took: float, unfinished: bool) -> None:
        """A call on the loop was not quick, or a task has to go on with it."""
        # On a busy machine most of them were quick, and stopped by the kernel.
        held = took - self._delayed()
        if held > _QUICK:
            kind.credit -= held
        if kind.credit < 0 or unfinished:
            kind.until = 0.0
        if held > _CREDIT:
            self._not_before = monotonic() + held * _PENALTY
            self._forget()

    def _delayed(self) -> float:
        """Seconds that the loop had to wait for a processor since this was asked last."""
        before, self._delay = self._delay, delay(self.loop_thread)
        return self._delay - before

    def _forget(self) -> None:
        self._kinds.clear()
        self._general.clear()

    def ran(self, kind: Kind, took: float, waited: float) -> None:
        """For the threads: a call of ``kind`` has taken and waited for so many seconds."""
        now = self._ran_last = monotonic()
        with self._lock:
            kind.calls += 1
            kind.took += took
            kind.waited += waited
            if kind.calls < _SAMPLE:
                return
            if (
                kind.took < _SAMPLE * _QUICK
                and kind.waited < _SAMPLE * _WAIT
                and now >= self._not_before
            ):
                self._delayed()  # what was before is of no interest
                kind.credit = _CREDIT
                kind.until = now + _BELIEVED
            kind.calls = 0
            kind.took = kind.waited = 0.0


class TimedCall(ThreadCall):
    """A call in a thread, of which we want to know how long it takes."""

    __slots__ = ("_apart", "_kind")

    threads: AutoThreads

    def __init__(
        self,
        response: HttpServerResponse,
        environ: dict[str, Any],
        threads: AutoThreads,
        kind: Kind,
    ) -> None:
        super().__init__(response, environ, threads)
        self._kind = kind
        # Seconds that were not the application's.
        self._apart = 0.0

    def _call(self, environ: dict[str, Any] | None) -> None:
        began, computed = monotonic(), thread_time()
        try:
            super()._call(environ)
        finally:
            computed = thread_time() - computed
            took = monotonic() - began - self._apart
            self.threads.ran(self._kind, took, took - computed)

    def _tell(self) -> None:
        began = monotonic()
        super()._tell()
        self._apart += monotonic() - began

    def _wait(self) -> None:
        began = monotonic()
        try:
            super()._wait()
        finally:
            self._apart += monotonic() - began
