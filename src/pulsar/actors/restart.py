"""When the worker of a slot is started again, and how its end is told.

Owns: the restart policy, a pure function of what has happened, and the words
for an exit status.
Leaves: clocks, processes and waiting to those who ask.

A slot is the place of one worker. Its *crashes* are the exits that nobody had
asked for; those in a row make each other wait longer, until a worker has been
healthy for long enough.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, TypeAlias

__all__ = [
    "HISTORY",
    "POLICY",
    "Decision",
    "Exit",
    "GiveUp",
    "Policy",
    "Start",
    "Wait",
    "decide",
    "describe_exit",
]

HISTORY = 32
"""How many exits of a slot are worth keeping; no default decision looks further back."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient a slot is; all times are in seconds.

    :param first_delay: the first pause between crashes in a row
    :param max_delay: the longest such pause
    :param factor: how much longer each pause is than the one before
    :param healthy: a worker that was ready for so long makes its slot forget
    :param starts: so many starts that end in a crash are allowed per ``window``
    :param window: see ``starts``
    :param boot_attempts: so many workers in a row, killed by signals before
        they were ready, end the first start of the tree
    """

    first_delay: float = 0.1
    max_delay: float = 10.0
    factor: float = 2.0
    healthy: float = 30.0
    starts: int = 12
    window: float = 60.0
    boot_attempts: int = 3


POLICY = Policy()


class Exit(NamedTuple):
    """The end of one worker; all times are readings of one monotonic clock, in seconds."""

    at: float
    started: float
    ready_at: float | None
    """When it had reported that it serves; ``None``: it never did."""
    status: int
    """As ``os.waitpid`` returns it."""
    asked: bool
    """We had asked it to end, and not because something was wrong with it."""


class Start(NamedTuple):
    """Start the next worker now."""


class Wait(NamedTuple):
    """Start the next worker in so many seconds; always more than 0."""

    seconds: float


class GiveUp(NamedTuple):
    """Start no other worker: the tree cannot come up, for this reason."""

    reason: str


Decision: TypeAlias = Start | Wait | GiveUp


def decide(
    history: Sequence[Exit], now: float, *, tree_was_ready: bool, policy: Policy = POLICY
) -> Decision:
    """What to do about a slot that has no worker.

    :param history: the slot's exits, oldest first; the last ``HISTORY`` are enough
    :param now: reading of the clock that the exits were timed with
    :param tree_was_ready: all workers of this tree have been ready at least once;
        from then on it is never given up

    The first replacement of a worker that had served is immediate.
    """
    crashes = [end for end in history if not end.asked]
    if not crashes:
        return Start()
    if not tree_was_ready and (reason := _why_hopeless(crashes, policy)):
        return GiveUp(reason)
    due = crashes[-1].at + _pause(history, policy)
    if len(crashes) >= policy.starts:
        due = max(due, crashes[-policy.starts].started + policy.window)
    return Wait(due - now) if due > now else Start()


def _why_hopeless(crashes: list[Exit], policy: Policy) -> str | None:
    last = crashes[-1]
    if last.ready_at is not None:
        return None
    if not os.WIFSIGNALED(last.status):
        # Its own code failed, and would again.
        return f"a worker {describe_exit(last.status)} before it was ready"
    # Signals come from outside, as from a machine that is short of memory: it may pass.
    never_ready = sum(1 for _ in takewhile(lambda end: end.ready_at is None, reversed(crashes)))
    if never_ready < policy.boot_attempts:
        return None
    return (
        f"{never_ready} workers in a row ended before they were ready, "
        f"the last one {describe_exit(last.status)}"
    )


def _pause(history: Sequence[Exit], policy: Policy) -> float:
    row: list[Exit] = []
    for end in history:
        if end.ready_at is not None and end.at - end.ready_at >= policy.healthy:
            row.clear()
        if not end.asked:
            row.append(end)
    if not row:
        return 0.0
    had_served = row[0].ready_at is not None
    if had_served and len(row) == 1:
        return 0.0
    pause = policy.first_delay
    for _ in row[2 if had_served else 1 :]:
        pause = min(pause * policy.factor, policy.max_delay)
    return pause


def describe_exit(status: int) -> str:
    """What became of a process, from its status as ``os.waitpid`` returns it.

    Such as "exited with code 3" or "killed by SIGKILL, perhaps out of memory".
    """
    if not os.WIFSIGNALED(status):
        return f"exited with code {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return f"killed by {name}, perhaps out of memory"
    return f"killed by {name}, core dumped" if os.WCOREDUMP(status) else f"killed by {name}"
