"""KILL to each part of the tree: what goes on, what is replaced, and that nothing is left."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.tree import Tree, deploy, descendants, gone, serve, until


def others(tree: Tree, pids: list[int]) -> list[int]:
    return [pid for pid in tree.workers() if pid not in pids]


def test_a_killed_worker_is_replaced_at_once(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2) as tree:
        before = tree.workers()
        with tree.client_of(before[0]) as lost, tree.client_of(before[1]) as kept:
            lost.send("until('/never')")
            kept.send(f"until({str(tmp_path / 'go')!r})")
            os.kill(before[0], signal.SIGKILL)
            assert lost.at_end()
            status = tree.until_ready(2)
            (tmp_path / "go").touch()
            assert kept.receive()
        [application] = status.applications
        assert application.restarts == 1
        assert application.last_failure == (
            f"app:App.0 ({before[0]}) killed by SIGKILL, perhaps out of memory"
        )
        assert application.slots[1].pid == before[1]
        assert application.slots[0].pid != before[0]
        assert status.ready
        assert f"{application.last_failure}\n" in tree.stderr
        assert "is started again in" not in tree.stderr


def test_workers_that_keep_dying_wait_longer_each_time_and_others_serve(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2) as tree:
        first = tree.workers()[1]
        for pause in ("0.1", "0.2", "0.4"):
            os.kill(until(lambda: tree.slots()[0].pid, "a worker"), signal.SIGKILL)
            if pause == "0.1":
                # The first replacement is immediate.
                tree.until_ready(2)
                os.kill(tree.workers()[0], signal.SIGKILL)
            tree.wait_for(f"app:App: worker 0 is started again in {pause} s")
            assert tree.who().pid == first
            until(lambda: tree.slots()[0].state == "running", "a worker")
        assert tree.status().applications[0].restarts == 4
        assert tree.until_ready(2).ready


def test_a_killed_fork_server_is_replaced_and_the_workers_go_on(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2) as tree, tree.client() as busy:
        workers, forkserver = tree.workers(), tree.forkserver
        busy.send(f"until({str(tmp_path / 'go')!r})")
        os.kill(forkserver, signal.SIGKILL)
        tree.wait_for(f"fork server 1 ({forkserver}) has died: its workers go on")
        assert {tree.who().pid for _ in range(4)} <= set(workers)
        status = tree.until_ready(2, generation=2)
        assert [slot.pid for slot in status.applications[0].slots] == workers
        (tmp_path / "go").touch()
        assert busy.receive()
        # The orphans are reaped by the arbiter, and replaced by the new fork server.
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: gone(workers[0]), "the worker has gone")
        [replaced, kept] = [slot.generation for slot in tree.until_ready(2).applications[0].slots]
        assert (replaced, kept) == (2, 1)
        assert tree.stop() == 0


def test_fork_server_and_workers_killed_at_once(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2) as tree:
        before = tree.workers()
        for pid in (tree.forkserver, *before):
            os.kill(pid, signal.SIGKILL)
        status = tree.until_ready(2, generation=2)
        assert not {slot.pid for slot in status.applications[0].slots} & set(before)
        assert tree.who().pid not in before


@pytest.mark.parametrize("reuse_port", ["--no-reuse-port", "--reuse-port"])
def test_without_the_arbiter_workers_drain_and_nothing_is_left(
    tmp_path: Path, reuse_port: str
) -> None:
    arguments = ("--workers", 2, "--bind", "unix:socket", "--pidfile", "pid", reuse_port)
    with serve(tmp_path, *arguments, listens=2) as tree, tree.client() as busy:
        tree.until_ready(2)
        busy.send(f"until({str(tmp_path / 'go')!r})")
        with tree.client() as idle:
            idle.ask("who()")
            tree.send(signal.SIGKILL)
            assert idle.at_end()
        for name in ("socket", "pid"):
            until(lambda: not (tmp_path / name).exists(), f"{name} has gone")  # noqa: B023
        with pytest.raises(ConnectionRefusedError):
            until(lambda: tree.client().close(), "nobody listens")
        (tmp_path / "go").touch()
        assert busy.receive()
        for pid in tree.seen:
            until(lambda: gone(pid), f"process {pid} has gone")  # noqa: B023 - at once
        assert tree.wait() == -signal.SIGKILL
        assert "Traceback" not in tree.stderr


def test_a_new_start_on_the_same_port_at_once(tmp_path: Path) -> None:
    arguments = ("--workers", 2, "--bind", "unix:socket", "--pidfile", "pid")
    with serve(tmp_path, *arguments, listens=2) as tree, tree.client() as busy:
        tree.until_ready(2)
        busy.send(f"until({str(tmp_path / 'go')!r})")
        tree.ask("who()")
        tree.send(signal.SIGKILL)
        with serve(tmp_path, *arguments, bind=tree.addresses[0], listens=2) as again:
            assert again.addresses == tree.addresses
            assert not set(again.workers()) & tree.seen
            for address in (0, 1):
                assert again.ask("who()", address)[2] in again.workers()
            (tmp_path / "go").touch()
            assert busy.receive()
        assert tree.wait() == -signal.SIGKILL
        tree.wait_for("the arbiter has gone: draining", 2)


def test_workers_without_an_arbiter_are_killed_in_the_end(tmp_path: Path) -> None:
    with serve(tmp_path, "--graceful-timeout", 0.2) as tree, tree.client() as busy:
        tree.until_ready(1)
        busy.send("sleep_for_ever()")
        tree.send(signal.SIGKILL)
        assert busy.at_end()
        began = time.monotonic()
        for pid in tree.seen:
            until(lambda: gone(pid), "it has gone")  # noqa: B023 - at once
        assert time.monotonic() - began < 20
        tree.wait()


def test_arbiter_and_fork_server_killed_at_once(tmp_path: Path) -> None:
    arguments = ("--workers", 2, "--bind", "unix:socket", "--pidfile", "pid")
    with serve(tmp_path, *arguments, listens=2) as tree, tree.client() as busy:
        tree.until_ready(2)
        busy.send(f"until({str(tmp_path / 'go')!r})")
        tree.ask("who()")
        forkserver = tree.forkserver
        tree.send(signal.SIGKILL)
        os.kill(forkserver, signal.SIGKILL)
        # Nobody could remove the files: the next one replaces them.
        with serve(tmp_path, *arguments, bind=tree.addresses[0], listens=2) as again:
            assert again.ask("who()", 1)[2] in again.workers()
            (tmp_path / "go").touch()
            assert busy.receive()
        tree.wait()


@pytest.mark.parametrize("generation", [1, 2])
def test_the_arbiter_is_killed_while_the_application_is_imported(
    tmp_path: Path, generation: int
) -> None:
    hangs = "open('importing', 'w').close(); sleep_for_ever()"
    deploy(tmp_path, more=hangs if generation == 1 else "")
    with serve(tmp_path, listens=generation - 1) as tree:
        if generation == 2:
            deploy(tmp_path, 2, more=hangs)
            tree.send(signal.SIGHUP)
        until((tmp_path / "importing").exists, "it is imported")
        tree.seen = descendants(tree.pid)
        assert tree.stop(signal.SIGKILL) == -signal.SIGKILL
