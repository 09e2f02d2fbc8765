"""The dining philosophers, as actors.

Five philosophers sit around a table, with a fork between any two of them. They think, and when
they are hungry they eat, which takes the forks on both sides. Each philosopher is a worker, a
process of its own, and its slot is its seat. The forks are with the monitor, in the process of
the arbiter, and are asked for with messages. Run it with ``python manage.py``.

Nobody waits for ever: all take the fork with the lower number first (E. W. Dijkstra), so they
never wait for each other in a circle, and a fork goes to whoever has waited longest. When a
philosopher dies its forks are back on the table, for the monitor learns of its end.
"""

import asyncio
import logging
import random
from collections import defaultdict, deque

from pulsar import Application, ImproperlyConfigured, command, send

logger = logging.getLogger("pulsar.philosophers")


class Table:
    """The forks: whoever is first in the queue of a fork has it, the others wait for it."""

    def __init__(self):
        self.queues = defaultdict(deque)

    async def pickup(self, fork, philosopher):
        turn = asyncio.get_running_loop().create_future()
        self.queues[fork].append((philosopher, turn))
        self._serve(fork)
        await turn

    def putdown(self, fork, philosopher):
        """Let ``philosopher`` leave the queue, wherever in it; True if it was there."""
        queue = self.queues[fork]
        leaving = [entry for entry in queue if entry[0] == philosopher]
        for entry in leaving:
            queue.remove(entry)
            entry[1].cancel()
        self._serve(fork)
        return bool(leaving)

    def _serve(self, fork):
        queue = self.queues[fork]
        if queue and not queue[0][1].done():
            queue[0][1].set_result(None)


@command()
async def pickup_fork(request, fork):
    """Answered when whoever asks has the fork."""
    await request.actor.extra["table"].pickup(fork, request.caller.aid)


@command()
def putdown_fork(request, fork):
    request.actor.extra["table"].putdown(fork, request.caller.aid)


class Philosophers(Application):
    """Dining philosophers, sitting around a table."""

    def serves_alone(self):
        if super().serves_alone():
            raise ImproperlyConfigured("philosophers are processes: give workers, 1 or more")
        return False

    # In the process of the arbiter

    async def monitor_start(self, monitor):
        monitor.extra["table"] = Table()
        monitor.bind_event("worker_exit", self.philosopher_gone)
        monitor.bind_event("periodic_task", self.report)

    def philosopher_gone(self, monitor, worker, exc=None, **kw):
        table = monitor.extra["table"]
        forks = [fork for fork in sorted(table.queues) if table.putdown(fork, worker.aid)]
        logger.info("%s has gone, and leaves forks %s", worker.name, forks)

    def report(self, monitor, exc=None):
        meals = sorted((news["seat"], news["meals"]) for news in monitor.notices.values())
        logger.info("meals: %s", ", ".join(f"{seat}: {count}" for seat, count in meals))

    # In the process of a philosopher

    async def worker_start(self, worker, exc=None):
        worker.extra.update(seat=worker.slot, meals=0)
        worker.bind_event("on_info", lambda worker, exc, info: info.update(worker.extra))
        worker.create_task(self.dine(worker))  # cancelled when the worker ends

    async def dine(self, worker):
        seats = self.cfg.workers
        forks = sorted({worker.slot % seats, (worker.slot + 1) % seats})
        while True:
            await asyncio.sleep(random.uniform(0, 0.2))  # thinking
            for fork in forks:
                await send(worker.monitor, "pickup_fork", fork)
            worker.extra["meals"] += 1
            logger.debug("philosopher %d eats with forks %s", worker.slot, forks)
            await asyncio.sleep(0.1)
            for fork in forks:
                await send(worker.monitor, "putdown_fork", fork)
            await send(worker.monitor, "notify", dict(worker.extra))


if __name__ == "__main__":
    Philosophers(workers=5).start()
