"""Signals between and to the processes of a tree.

Owns: which ones the arbiter alone follows, and the one that has stacks dumped.
Leaves: the arbiter's own table to ``arbiter``.
"""

from __future__ import annotations

import signal
import sys

__all__ = ["DUMP_SIGNAL", "LED_BY_THE_ARBITER"]

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
