"""Workers that stand still: noticed, their stacks logged, replaced; the others go on."""

import os
import signal
import time
from pathlib import Path

from tests.support.tree import gone, serve, until


def test_stuck_workers_are_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 4, "--timeout", 1) as tree:
        spinning, sleeping, stopped, healthy = tree.workers()
        with (
            tree.client_of(spinning) as spin,
            tree.client_of(sleeping) as sleep,
            tree.client_of(healthy) as kept,
        ):
            spin.send("spin_for_ever()")
            sleep.send("sleep_for_ever()")
            os.kill(stopped, signal.SIGSTOP)
            peers = [client.sock.getsockname()[1] for client in (spin, sleep)]
            while not all(gone(pid) for pid in (spinning, sleeping, stopped)):
                assert kept.ask("os.getpid()") == healthy
            assert spin.at_end()
            assert sleep.at_end()
        status = tree.until_ready(4)
        [application] = status.applications
        assert application.restarts == 3
        assert application.slots[3].pid == healthy
        assert "has been silent for" in str(application.last_failure)
        said = tree.stderr
        for slot, pid in enumerate((spinning, sleeping, stopped)):
            assert f"app:App.{slot} ({pid}) is stuck: it has been silent for" in said
            assert said.count(f"the stacks of app:App.{slot} ({pid})") == 1
        assert "in spin_for_ever" in said
        assert "in sleep_for_ever" in said
        for port in peers:
            assert f"in hand: 127.0.0.1:{port} App" in said
        assert "it does not answer" in said
        assert tree.stop() == 0


def test_a_worker_that_drains_and_is_stuck_is_replaced_no_more(tmp_path: Path) -> None:
    with serve(tmp_path, "--timeout", 0.5) as tree:
        [worker] = tree.workers()
        with tree.client_of(worker) as client:
            client.send("until('/never')")
            os.kill(worker, signal.SIGTERM)
            tree.wait_for("is replaced: it got SIGTERM")
            until(lambda: tree.workers() != [worker], "it has a successor")
            os.kill(worker, signal.SIGSTOP)
            tree.wait_for(f"({worker}) is stuck")
            assert client.at_end()
        until(lambda: gone(worker), "it has gone")
        assert tree.until_ready(1).applications[0].restarts == 0
        assert tree.stop() == 0


def test_nobody_is_stuck_because_the_machine_or_the_arbiter_was(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2, "--timeout", 0.6) as tree:
        workers = tree.until_ready(2).applications[0].slots
        for signal_it in (os.kill, os.killpg):
            signal_it(tree.pid, signal.SIGSTOP)
            # Twice as long as a worker may be silent.
            time.sleep(1.2)
            signal_it(tree.pid, signal.SIGCONT)
            after = tree.until_ready(2).applications[0].slots
            assert [slot.pid for slot in after] == [slot.pid for slot in workers]
            # They have been looked at again since then.
            later = (after[0].uptime or 0.0) + 0.4
            until(lambda: (tree.slots()[0].uptime or 0.0) > later, "a while")  # noqa: B023
        assert tree.until_ready(2).applications[0].restarts == 0
        assert "is stuck" not in tree.stderr
        assert tree.stop() == 0


def test_the_stacks_of_all_workers_on_demand(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2) as tree:
        workers = tree.workers()
        with tree.client_of(workers[0]) as client:
            client.block(tmp_path / "go")
            tree.send(signal.SIGABRT)
            for slot, pid in enumerate(workers):
                tree.wait_for(f"SIGABRT: the stacks of app:App.{slot} ({pid})")
            tree.wait_for("in block")
            tree.wait_for("nothing in hand")
            (tmp_path / "go").touch()
            assert client.receive()
        assert tree.workers() == workers
        assert tree.stop() == 0


def test_the_lag_of_a_loop_is_measured(tmp_path: Path) -> None:
    # A heartbeat each fifth of a second.
    with serve(tmp_path, "--timeout", 1.2) as tree:
        assert tree.ask("time.sleep(0.5)") is None
        until(lambda: (tree.slots()[0].lag or 0.0) > 0.2, "the lag is known")
        until(lambda: (tree.slots()[0].lag or 1.0) < 0.2, "the lag is over")
        assert "is stuck" not in tree.stderr
