"""The restart policy, as a table, and what it amounts to over time."""

import itertools
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulsar.actors.restart import (
    HISTORY,
    POLICY,
    Exit,
    GiveUp,
    Policy,
    Start,
    Wait,
    decide,
    describe_exit,
)

NOW = 1000.0
FAILED = 1 << 8
KILLED = int(signal.SIGKILL)


def crash(at: float, *, lived: float = 0.0, served: float | None = None, status=FAILED) -> Exit:
    """An exit that nobody asked for; ``served`` seconds after it was ready, if it was."""
    ready_at = None if served is None else at - served
    return Exit(at, at - max(lived, served or 0.0), ready_at, status, asked=False)


def asked(at: float, *, served: float | None = None) -> Exit:
    return crash(at, served=served, status=0)._replace(asked=True)


def boot(*ago: float, status=FAILED) -> list[Exit]:
    """Crashes before a worker was ready, so many seconds ago."""
    return [crash(NOW - seconds, status=status) for seconds in ago]


def served(*ago: float, seconds: float = 1.0) -> list[Exit]:
    """Crashes of workers that had served for a second."""
    return [crash(NOW - each, served=seconds) for each in ago]


RUNNING = [
    ("an empty slot", [], Start()),
    ("a worker that was asked to end", [asked(NOW, served=5)], Start()),
    ("any number of these", [asked(NOW, served=0)] * 50, Start()),
    ("one that was asked before it was ready", [asked(NOW)], Start()),
    ("the first crash of a worker that served", served(0), Start()),
    ("even if it served a moment only", served(0, seconds=0), Start()),
    ("the second", served(9, 0), Wait(0.1)),
    ("the third", served(9, 8, 0), Wait(0.2)),
    ("the fourth", served(9, 8, 7, 0), Wait(0.4)),
    ("the longest pause", served(*range(99, 0, -10), 0), Wait(10.0)),
    ("a crash before it was ready", boot(0), Wait(0.1)),
    ("two of them", boot(1, 0), Wait(0.2)),
    ("killed before it was ready, often", boot(5, 4, 3, 2, 1, 0, status=KILLED), Wait(3.2)),
    ("a crash of each sort", served(1) + boot(0), Wait(0.1)),
    ("the other way round", boot(1) + served(0), Wait(0.2)),
    ("a part of the pause is over", boot(0.0625), Wait(0.1 - 0.0625)),
    ("the pause is over", boot(0.125), Start()),
    ("it has long been over", boot(500, 400), Start()),
    ("crashes that a healthy worker forgets", boot(90, 80) + served(0, seconds=30), Start()),
    ("its next ones count anew", boot(90) + served(9, seconds=30) + served(0), Wait(0.1)),
    ("not quite healthy", boot(90, 80) + served(0, seconds=29), Wait(0.4)),
    ("healthy, and asked to end", [*boot(90, 80), asked(NOW - 9, served=30), *boot(0)], Wait(0.1)),
    ("one that was asked says nothing", [*boot(9), asked(NOW - 1, served=1), *boot(0)], Wait(0.2)),
    (
        "slow to be ready, then soon gone: not healthy",
        [crash(NOW - 9, lived=60, served=1), crash(NOW, lived=60, served=1)],
        Wait(0.1),
    ),
    ("eleven starts in a minute", served(*[50.0] * 11), Start()),
    ("twelve", [crash(NOW - 20, lived=30)] * 12, Wait(10.0)),
    ("twelve, the first of them longer ago", [crash(NOW - 20, lived=40)] * 12, Start()),
]

FIRST_START = [
    ("an empty slot", [], Start()),
    (
        "a worker whose code failed",
        boot(0),
        GiveUp("a worker exited with code 1 before it was rea"),
    ),
    ("also when it ended well", boot(0, status=0), GiveUp("a worker exited with code 0 before it")),
    ("also some time ago", boot(60), GiveUp("a worker exited with code 1")),
    ("killed once", boot(0, status=KILLED), Wait(0.1)),
    ("killed twice", boot(1, 0, status=KILLED), Wait(0.2)),
    (
        "killed three times",
        boot(2, 1, 0, status=KILLED),
        GiveUp("3 workers in a row ended before they were ready, the last one killed by SIGKILL, "),
    ),
    ("killed, then failed", boot(1, status=KILLED) + boot(0), GiveUp("a worker exited with code")),
    ("one that had been ready", served(0), Start()),
    ("again and again", served(*range(10, 0, -1), 0), Wait(10.0)),
    ("twice killed, once ready", boot(3, 2, status=KILLED) + served(0), Wait(0.4)),
    (
        "kills that are not in a row",
        boot(9, 8, status=KILLED) + served(7) + boot(0, status=KILLED),
        Wait(0.8),
    ),
    ("asked to end while it started", [asked(NOW)], Start()),
    (
        "kills with one in between that was asked",
        [*boot(9, 8, status=KILLED), asked(NOW - 7), *boot(0, status=KILLED)],
        GiveUp("3 workers in a row"),
    ),
]


@pytest.mark.parametrize("row", RUNNING, ids=[row[0] for row in RUNNING])
def test_a_tree_that_was_ready(row):
    _, history, expected = row
    decision = decide(history, NOW, tree_was_ready=True)
    assert type(decision) is type(expected)
    assert decision == pytest.approx(expected)


@pytest.mark.parametrize("row", FIRST_START, ids=[row[0] for row in FIRST_START])
def test_the_first_start_of_a_tree(row):
    _, history, expected = row
    decision = decide(history, NOW, tree_was_ready=False)
    if isinstance(expected, GiveUp):
        assert isinstance(decision, GiveUp)
        assert decision.reason.startswith(expected.reason)
        assert not isinstance(decide(history, NOW, tree_was_ready=True), GiveUp)
    else:
        assert type(decision) is type(expected)
        assert decision == pytest.approx(expected)


def starts(lives, policy=POLICY, *, until: float) -> list[float]:
    """When the workers of one slot are started, who live as ``lives`` says.

    Each life is a number of seconds, and whether the worker was ready all along.
    """
    history: list[Exit] = []
    now, started = 0.0, []
    for seconds, ready in lives:
        while isinstance(
            decision := decide(history, now, tree_was_ready=True, policy=policy), Wait
        ):
            assert decision.seconds > 0
            now += decision.seconds
        assert decision == Start()
        if now >= until:
            break
        started.append(now)
        now += seconds
        history.append(Exit(now, started[-1], started[-1] if ready else None, FAILED, False))
        del history[:-HISTORY]
    return started


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.5, 1.0, 3.0])
def test_a_worker_that_always_crashes_is_started_12_times_in_the_first_minute(seconds, ready):
    times = starts([(seconds, ready)] * 100, until=60.0)
    assert len(times) <= 12
    assert seconds > 0.5 or len(times) == 12, "nor is the policy slower than it must be"


def test_a_worker_that_always_crashes_is_tried_for_ever():
    times = starts([(0.0, False)] * 1000, until=3600.0)
    assert times[1] == pytest.approx(0.1)
    assert 300 < len(times) <= 372
    assert max(late - early for early, late in itertools.pairwise(times)) < 10.1


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 9.0, 29.0, 30.0, 31.0]), st.booleans())))
def test_no_slot_is_started_more_often_than_12_times_in_any_minute(lives):
    times = starts(lives, until=1e9)
    for first, thirteenth in zip(times, times[12:], strict=False):
        assert thirteenth - first > 60.0 - 1e-6


@given(
    st.lists(st.tuples(st.floats(0, 100), st.one_of(st.none(), st.floats(0, 100)), st.booleans())),
    st.floats(0, 100),
    st.booleans(),
)
def test_nobody_waits_longer_than_a_minute(lives, later, tree_was_ready):
    history, now = [], 0.0
    for seconds, served, was_asked in lives:
        started, now = now, now + seconds + (served or 0)
        ready_at = None if served is None else now - served
        history.append(Exit(now, started, ready_at, KILLED, was_asked))
    match decide(history, now + later, tree_was_ready=tree_was_ready):
        case Wait(seconds):
            assert 0 < seconds <= 60
        case GiveUp(reason):
            assert reason
            assert not tree_was_ready


def test_another_policy():
    policy = Policy(first_delay=1, max_delay=3, factor=4, healthy=5, boot_attempts=1)
    delays = [decide(boot(*[0] * n), NOW, tree_was_ready=True, policy=policy) for n in (1, 2, 3)]
    assert delays == [Wait(1), Wait(3), Wait(3)]
    forgotten = boot(9) + served(0, seconds=5)
    assert decide(forgotten, NOW, tree_was_ready=True, policy=policy) == Start()
    killed = decide(boot(0, status=KILLED), NOW, tree_was_ready=False, policy=policy)
    assert isinstance(killed, GiveUp)
    few = Policy(starts=2, window=5)
    assert decide(boot(2, 1), NOW, tree_was_ready=True, policy=few) == Wait(3)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with code 0"),
        (3 << 8, "exited with code 3"),
        (255 << 8, "exited with code 255"),
        (signal.SIGKILL, "killed by SIGKILL, perhaps out of memory"),
        (signal.SIGTERM, "killed by SIGTERM"),
        (signal.SIGSEGV, "killed by SIGSEGV"),
        (signal.SIGSEGV | 0x80, "killed by SIGSEGV, core dumped"),
        (signal.SIGRTMIN + 3, f"killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_an_exit_in_words(status, words):
    assert describe_exit(int(status)) == words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(4)", "exited with code 4"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, perhaps out of memory"),
    ],
)
def test_a_real_exit_in_words(code, words):
    process = subprocess.Popen([sys.executable, "-S", "-c", code])
    _, status = os.waitpid(process.pid, 0)
    process.returncode = 0  # reaped behind its back
    assert describe_exit(status) == words
