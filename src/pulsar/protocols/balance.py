"""An even share of the connections for each of the workers that listen on one socket.

Owns: ``Table``, the memory in which the workers count, and ``Balance``, one worker's view
of it: when to let others accept, and for how long.
Leaves: accepting to ``accept``, timers to ``TcpServer``, who has which cell to whoever
starts the workers.

A kernel wakes every process that waits for a connection, and the first to run takes it;
then it takes the next, because it runs already: of a burst of 200 one of four workers took
124. So a worker that has clearly more than the mean steps back: it does not accept for a
few milliseconds, and the others, who are awake, take what is queued.

There is no lock. Each worker writes two numbers of its own, its connections and how many
it has accepted, and reads those of the others; one that is a moment old does no harm.
Whoever accepts nothing, though others have stepped back for it, is stuck or stopped, and is
left out of the mean until it accepts again. Where those who accept do not keep what they
accept, since it is over within milliseconds, there is nothing to be evened out, only work to
be shared: nobody steps back for a while.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from typing import Self

__all__ = ["Balance", "Table"]

# The table is an array of C ints: the number of the last cell that is or was in use, then
# for each cell, which are counted from 1, its connections, then for each how many it has
# accepted, which wraps.
_SIZE = 4
_NOBODY = -1
_WRAP = 0x7FFFFFFF

# As many as fit in a page of memory.
_CAPACITY = (mmap.PAGESIZE // _SIZE - 1) // 2

# A worker with no more connections than this never steps back, nor does one that is over the
# mean by no more than that.
_FEW = 8
_FACTOR = 1.25
_MARGIN = 2

# One look at the others for so many connections, while there is no reason to expect more.
_SAMPLE = 8

# Seconds to step back for: first, and as long as nobody takes what is queued twice as long
# each time, up to a longest step.
_FIRST_STEP = 0.002
_LONGEST_STEP = 0.016

# Seconds for which a connection may wait in vain. Where we are woken late ourselves, the
# others wait for the CPU, too, perhaps: so they get that time twice, up to a limit.
_PATIENCE = 0.035
_LONGEST_PATIENCE = 0.1

# Seconds for which nobody steps back, when that was of no use; but for those who have so
# many times what makes others step back: a burst may come in the middle of it.
_RESPITE = 0.1
_FAR = 1.15


class Table:
    """The memory of one group of workers; for whoever starts them.

    :param capacity: how many workers there may be at a time

    Raises ``OSError`` when there is no memory to share.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self.capacity = capacity
        size = (1 + 2 * capacity) * _SIZE
        #: To be passed to the workers, for ``Balance.attach``.
        self.descriptor = _shared_memory(size)
        self._memory = mmap.mmap(self.descriptor, size)
        self._cells = memoryview(self._memory).cast("i")
        self._taken: set[int] = set()

    def take(self) -> int:
        """The cell of a new worker, who counts from the moment when it listens; 1 or more.

        Raises ``LookupError`` when all are taken.
        """
        for cell in range(1, self.capacity + 1):
            if cell not in self._taken:
                self._taken.add(cell)
                self._cells[cell] = _NOBODY
                self._cells[0] = max(self._cells[0], cell)
                return cell
        raise LookupError(f"all {self.capacity} cells of the table are taken")

    def free(self, cell: int) -> None:
        """The worker that had ``cell`` has ended, however it did. May be repeated."""
        self._taken.discard(cell)
        self._cells[cell] = _NOBODY

    def connections(self) -> dict[int, int]:
        """The connections of each worker that listens, by its cell."""
        counts = self._cells[1 : 1 + self._cells[0]].tolist()
        return {cell: count for cell, count in enumerate(counts, 1) if count != _NOBODY}

    def close(self) -> None:
        """Give the memory up; workers that are attached keep it."""
        self._cells.release()
        self._memory.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Balance:
    """One worker's part: give it to the ``TcpServer`` that accepts, before its start.

    :param table: the memory of a ``Table``, as a writable buffer
    :param cell: which cell is this worker's
    """

    def __init__(self, table: memoryview | mmap.mmap, cell: int) -> None:
        self._memory = table
        self._cells = memoryview(table).cast("B").cast("i")
        capacity = (len(self._cells) - 1) // 2
        if not 1 <= cell <= capacity:
            raise ValueError(f"there is no cell {cell} in a table of {capacity}")
        self._capacity = capacity
        self._cell = cell
        self._own_accepted = capacity + cell
        # With fewer connections than this we were below the limit when we last looked.
        self._limit: float = _FEW
        # Those who do not accept, and what they had accepted when that was noticed.
        self._absent: dict[int, int] = {}
        # For whom we have stepped back, and what they had and had accepted then.
        self._below: dict[int, tuple[int, int]] = {}
        # When we began to step back, the length of the present step, and of all of them.
        self._began = 0.0
        self._step = self._asked = _FIRST_STEP
        # Not before that time, of the monotonic clock, do we step back again.
        self._respite = 0.0

    @classmethod
    def attach(cls, descriptor: int, cell: int) -> Self:
        """The table behind a duplicate of ``Table.descriptor``, which is closed."""
        try:
            return cls(mmap.mmap(descriptor, 0), cell)
        finally:
            os.close(descriptor)

    def join(self) -> None:
        """This worker accepts from now on."""
        self._cells[self._cell] = 0

    def leave(self) -> None:
        """This worker accepts no more."""
        self._cells[self._cell] = _NOBODY

    def lost(self, count: int) -> None:
        """This worker has ``count`` connections, after it has lost one."""
        self._cells[self._cell] = count

    def accepted(self, count: int, total: int) -> float:
        """This worker has ``count`` connections, after it has accepted its ``total``-th.

        Returns seconds to step back for: not to accept, and then to ask ``longer``; 0: none.
        """
        cells = self._cells
        cells[self._cell] = count
        cells[self._own_accepted] = total & _WRAP
        if count < self._limit and (count < _FEW or total % _SAMPLE):
            return 0.0
        counts = cells[1 : 1 + cells[0]].tolist()
        workers = len(counts) - counts.count(_NOBODY)
        # Each that is nobody has been added as -1.
        connections = sum(counts) + len(counts) - workers
        self._limit = max(_FEW, _FACTOR * connections / workers + _MARGIN)
        return self._step_back(count, counts) if count > self._limit else 0.0

    def _step_back(self, count: int, counts: list[int]) -> float:
        now = time.monotonic()
        if now < self._respite and count <= _FAR * self._limit:
            return 0.0
        totals = self._totals()
        # Whoever has accepted since is absent no more.
        self._absent = {
            cell: total for cell, total in self._absent.items() if totals[cell] == total
        }
        present = {
            cell: number
            for cell, number in enumerate(counts, 1)
            if number != _NOBODY and cell not in self._absent
        }
        mean = sum(present.values()) / len(present)
        if count <= _FACTOR * mean + _MARGIN:
            return 0.0
        self._below = {
            cell: (number, totals[cell]) for cell, number in present.items() if number < mean
        }
        self._began = now
        self._step = self._asked = _FIRST_STEP
        return _FIRST_STEP

    def longer(self, queued: bool) -> float:
        """Seconds to go on stepping back for; 0: accept again.

        :param queued: connections wait to be accepted
        """
        cells, totals = self._cells, self._totals()
        kept = accepted = 0
        for cell, (count, total) in self._below.items():
            kept += cells[cell] - count
            accepted += (totals[cell] - total) & _WRAP
        now = time.monotonic()
        if 2 * kept < accepted:
            self._respite = now + _RESPITE
        if accepted or not queued:
            return 0.0
        waited = now - self._began
        late = waited - self._asked
        self._step = min(2 * self._step, _LONGEST_STEP)
        self._asked += self._step
        if self._asked <= _PATIENCE + 2 * late and waited + self._step <= _LONGEST_PATIENCE:
            return self._step
        self._absent.update({cell: total for cell, (_, total) in self._below.items()})
        return 0.0

    def _totals(self) -> list[int]:
        """How many connections each has accepted, at the index of its cell."""
        start = self._capacity
        return self._cells[start : start + 1 + self._cells[0]].tolist()

    def close(self) -> None:
        """Leave, and give the memory up; the server must have ended."""
        self.leave()
        self._cells.release()
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()


def _shared_memory(size: int) -> int:
    """The descriptor of ``size`` bytes of memory that has no name."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("pulsar", os.MFD_CLOEXEC)
    else:
        import tempfile  # only here: it takes a while

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
