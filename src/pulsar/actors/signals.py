"""Signals between and to the processes of a tree.

Owns: which ones the arbiter alone follows, and the one that has stacks dumped.
Leaves: the arbiter's own table to ``arbiter``.
"""

from __future__ import annotations

import signal
import sys

__all__ = ["DUMP_SIGNAL", "LED_BY_THE_ARBITER", "hold_signals", "let_signals_through"]

# Sent to every process of a terminal or a control group: the arbiter leads, the others
# wait for what it says. Handlers, for what is ignored would be so in programs, too.
LED_BY_THE_ARBITER = (
    "SIGINT",
    "SIGTERM",
    "SIGQUIT",
    "SIGHUP",
    "SIGUSR1",
    "SIGUSR2",
    "SIGTTIN",
    "SIGTTOU",
    "SIGWINCH",
)

# Has the stacks of a worker written to its arbiter. A real-time signal where there are
# any, for nothing else uses them.
DUMP_SIGNAL: int = signal.SIGRTMAX - 1 if sys.platform == "linux" else signal.SIGUSR2


def _numbers() -> list[signal.Signals]:
    names = (*LED_BY_THE_ARBITER, "SIGABRT")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def hold_signals() -> None:
    """Let what the arbiter handles wait until it can: by default it would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())


def let_signals_through() -> None:
    """Take back ``hold_signals``; what has come meanwhile comes now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers())
