"""A machine that has run out of something: what goes on, and that it recovers."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.tree import deploy, gone, opened, serve, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of other processes")


@contextmanager
def limited(pid: int, what: int, limit: int) -> Iterator[None]:
    """Let ``pid`` have no more than ``limit`` of something."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


def test_an_arbiter_without_descriptors(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2) as tree:
        [dies, stays] = tree.until_ready(2).applications[0].slots
        assert dies.pid is not None
        with limited(tree.pid, resource.RLIMIT_NOFILE, len(opened(tree.pid))):
            os.kill(dies.pid, signal.SIGKILL)
            tree.wait_for("a worker cannot be forked: Too many open files")
            assert tree.who().pid == stays.pid
            deploy(tmp_path, 2)
            tree.send(signal.SIGHUP)
            tree.wait_for("not reloaded, everything goes on as it was")
            assert tree.who().version == 1
        tree.until_ready(2, generation=1)
        tree.reload()
        tree.until_ready(2)
        assert tree.who().version == 2
        assert tree.stop() == 0


def test_a_worker_without_descriptors(tmp_path: Path) -> None:
    deploy(tmp_path, more="import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n")
    with serve(tmp_path) as tree, ExitStack() as stack:
        clients = [stack.enter_context(tree.client()) for _ in range(100)]
        for client in clients:
            client.send("os.getpid()")
        # Some wait until others have gone.
        for client in clients:
            assert client.receive() == tree.workers()[0]
            client.close()
        assert tree.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_fork_server_that_may_not_fork(open_path: Path) -> None:
    # A user whom nobody else is: itself, two workers and no more.
    user = 60_000 + os.getpid() % 5000
    deploy(open_path, more="import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (3, 3))\n")
    with serve(open_path, "--workers", 2, "--user", user, "--group", user) as tree:
        workers = tree.workers()
        tree.send(signal.SIGTTIN)
        tree.wait_for("could not be forked: Resource temporarily unavailable", 2)
        tree.wait_for("app:App: worker 2 is started again in ", 2)
        assert tree.who().pid in workers
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: gone(workers[0]), "it has gone")
        tree.send(signal.SIGTTOU)
        tree.until_ready(2)
        assert tree.workers()[1] == workers[1]
        assert tree.stop() == 0
