"""The dining philosophers: everybody eats, whoever dies, and nobody eats with a neighbour."""

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from examples.philosophers.manage import Philosophers, Table
from pulsar.errors import ImproperlyConfigured
from tests.support.process import EXAMPLES, PATIENCE, ServerProcess, clean_environment

HERE = EXAMPLES / "philosophers"
SEATS = 5
MEAL = re.compile(r"\[(\d+)\] \[DEBUG\] philosopher (\d) eats with forks")

Run = Callable[..., Any]


@pytest.fixture
def start(loop_kind: str) -> Callable[..., ServerProcess]:
    options = ("--event-loop", loop_kind, "--log-level", "debug")
    return partial(ServerProcess, "manage.py", *options, cwd=HERE, listens=0)


@pytest.fixture
def dinner(start: Callable[..., ServerProcess]) -> Iterator[ServerProcess]:
    with start() as process:
        process.wait_for("philosophers is running")
        yield process


def meals_of(dinner: ServerProcess, behind: int = 0) -> Counter[tuple[int, int]]:
    """How often each (seat, pid) has eaten, according to the log behind a position."""
    found = MEAL.findall(dinner.stderr[behind:])
    return Counter((int(seat), int(pid)) for pid, seat in found)


def everybody_eats(dinner: ServerProcess, behind: int = 0, times: int = 2) -> dict[int, int]:
    """Wait until every seat has eaten so often, behind a position of the log; seat -> pid."""
    deadline = time.monotonic() + PATIENCE
    while True:
        fed = {seat: pid for (seat, pid), n in meals_of(dinner, behind).items() if n >= times}
        if len(fed) == SEATS:
            return fed
        assert time.monotonic() < deadline, f"only {sorted(fed)} have eaten:\n{dinner.stderr}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# The whole dinner


def test_everybody_eats_and_all_leave_at_the_end(dinner: ServerProcess) -> None:
    philosophers = everybody_eats(dinner)
    assert len(set(philosophers.values())) == SEATS
    dinner.wait_for("meals: 0: ")  # what they have told the monitor
    assert dinner.stop() == 0
    assert all(map(gone, philosophers.values()))
    assert "Traceback" not in dinner.stderr
    assert "never retrieved" not in dinner.stderr


def test_a_killed_philosopher_leaves_its_forks_and_is_replaced(dinner: ServerProcess) -> None:
    philosophers = everybody_eats(dinner, times=1)
    victim = philosophers[2]
    eaten = meals_of(dinner)[2, victim]
    # In the middle of a meal, for it takes a tenth of a second.
    dinner.wait_for(f"[{victim}] [DEBUG] philosopher 2 eats", eaten + 1)
    os.kill(victim, signal.SIGKILL)
    dinner.wait_for(f"philosophers.2 ({victim}) killed by SIGKILL")
    philosophers[2] = everybody_eats(dinner, behind=len(dinner.stderr))[2]
    assert philosophers[2] != victim
    # Nobody else had to leave.
    assert everybody_eats(dinner, behind=len(dinner.stderr)) == philosophers
    assert "philosophers.2 has gone, and leaves forks [" in dinner.stderr


def test_a_reload_seats_new_philosophers(dinner: ServerProcess) -> None:
    before = everybody_eats(dinner, times=1)
    dinner.send(signal.SIGHUP)
    dinner.wait_for("reloaded: generation 2 serves")
    dinner.wait_for(" has gone, and leaves forks ", SEATS)
    after = everybody_eats(dinner, behind=len(dinner.stderr))
    assert not set(before.values()) & set(after.values())
    assert all(map(gone, before.values()))


def test_a_guest_shares_a_seat_and_a_lonely_philosopher_eats_with_one_fork(
    start: Callable[..., ServerProcess],
) -> None:
    with start("--workers", "1") as dinner:
        dinner.wait_for("philosopher 0 eats with forks [0]", 2)
        dinner.send(signal.SIGTTIN)
        dinner.wait_for("philosopher 1 eats with forks [0]", 2)


def test_there_is_no_dinner_without_workers() -> None:
    ended = subprocess.run(
        [sys.executable, "manage.py", "--workers", "0"],
        cwd=HERE,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    sentence = "philosophers: error: philosophers are processes: give workers, 1 or more\n"
    assert (ended.returncode, ended.stderr) == (3, sentence)
    with pytest.raises(ImproperlyConfigured, match="philosophers are processes"):
        Philosophers(load_config=False, concurrency="thread").serves_alone()


# The forks


def test_a_fork_goes_to_whoever_has_waited_longest(run: Run) -> None:
    async def main() -> None:
        table, got = Table(), []

        async def take(who: str) -> None:
            await table.pickup(1, who)
            got.append(who)

        tasks = [asyncio.ensure_future(take(who)) for who in "abcd"]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert got == ["a"]
        assert table.putdown(1, "c")  # it dies while it waits
        assert table.putdown(1, "a")
        await tasks[1]
        assert table.putdown(1, "b")
        await tasks[3]
        assert got == ["a", "b", "d"]
        assert tasks[2].cancelled()
        assert table.putdown(1, "d")
        assert not table.putdown(1, "d")

    run(main())


@pytest.mark.parametrize("seed", range(5))
def test_no_fork_is_in_two_hands_and_nobody_waits_for_ever(seed: int, run: Run) -> None:
    """Philosophers eat without a pause and die at any moment; there is always another one."""
    chance = random.Random(seed)

    async def main() -> None:
        table = Table()
        in_hand: dict[int, str] = {}
        eaten: Counter[int] = Counter()

        async def dine(who: str, seat: int) -> None:
            forks = sorted({seat, (seat + 1) % SEATS})
            while eaten[seat] < 50:
                for fork in forks:
                    await table.pickup(fork, who)
                    assert in_hand.setdefault(fork, who) == who
                await asyncio.sleep(0)
                eaten[seat] += 1
                for fork in forks:
                    del in_hand[fork]
                    table.putdown(fork, who)

        async def sit(seat: int) -> None:
            number = 0
            while eaten[seat] < 50:
                number += 1
                who = f"{seat}-{number}"
                life = asyncio.ensure_future(dine(who, seat))
                for _ in range(chance.randrange(200)):
                    await asyncio.sleep(0)
                life.cancel()
                await asyncio.wait([life])
                if not life.cancelled():
                    life.result()
                for fork in range(SEATS):
                    if in_hand.get(fork) == who:
                        del in_hand[fork]
                    table.putdown(fork, who)

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*map(sit, range(SEATS)))
        assert not in_hand
        assert not any(table.queues.values())

    run(main())
