"""The number of workers: given, changed while they serve, and what each of them is told."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from pulsar.errors import ControlError
from tests.support.tree import gone, serve, until


@pytest.mark.parametrize("reuse_port", ["--no-reuse-port", "--reuse-port"])
def test_four_one_four(tmp_path: Path, reuse_port: str) -> None:
    with serve(tmp_path, "--workers", 4, reuse_port) as tree:
        first = tree.workers()
        with ExitStack() as stack:
            busy = [stack.enter_context(tree.client_of(pid)) for pid in first]
            for client in busy:
                client.send(f"until({str(tmp_path / 'go')!r})")
            done = tree.command("scale", 1)
            assert (done.returncode, done.stdout) == (0, f"app:App ({tree.pid}) has 1 worker\n")
            assert tree.workers() == first[:1]
            # Connections reach the one that is left, whatever socket the system gives them.
            assert {tree.who().pid for _ in range(16)} == {first[0]}
            (tmp_path / "go").touch()
            assert all(client.receive() for client in busy)
        for pid in first[1:]:
            until(lambda: gone(pid), "it has gone")  # noqa: B023 - at once
        tree.until_ready(1)
        tree.control("scale", workers=4)
        status = tree.until_ready(4)
        assert status.applications[0].workers == 4
        assert [slot.slot for slot in status.applications[0].slots] == [0, 1, 2, 3]
        assert tree.workers()[0] == first[0]
        for slot, pid in enumerate(tree.workers()):
            with tree.client_of(pid) as client:
                assert client.ask("who()") == (1, slot, pid)
        assert tree.status().applications[0].restarts == 0
        assert tree.stop() == 0


def test_one_more_and_one_less_by_signal(tmp_path: Path) -> None:
    with serve(tmp_path) as tree:
        tree.send(signal.SIGTTIN)
        tree.wait_for("SIGTTIN: app:App gets 2 workers")
        tree.until_ready(2)
        tree.send(signal.SIGTTOU)
        tree.wait_for("SIGTTOU: app:App gets 1 workers")
        tree.until_ready(1)
        tree.send(signal.SIGTTOU)
        tree.wait_for("SIGTTOU: app:App keeps its last worker")
        assert tree.until_ready(1).applications[0].workers == 1
        with pytest.raises(ControlError, match="workers cannot be 0"):
            tree.control("scale", workers=0)
        with pytest.raises(ControlError, match="there is no application 'inn'"):
            tree.control("scale", workers=2, application="inn")
        assert tree.until_ready(1)


def test_the_queue_of_a_worker_that_is_wanted_no_more_is_served(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2, "--reuse-port") as tree, ExitStack() as stack:
        busy = [stack.enter_context(tree.client_of(pid)) for pid in tree.workers()]
        for client in busy:
            client.block(tmp_path / "go")
        # Nobody accepts now: each waits in the queue of one of the two.
        queued = [stack.enter_context(tree.client()) for _ in range(30)]
        for client in queued:
            client.send("VERSION")
        tree.send(signal.SIGTTOU)
        tree.wait_for("SIGTTOU")
        (tmp_path / "go").touch()
        assert [client.receive() for client in queued] == [1] * 30
        assert all(client.receive() for client in busy)
        tree.until_ready(1)
        assert tree.who()


def test_the_sockets_of_a_dead_workers_slot_are_served(tmp_path: Path) -> None:
    # It is away for longer each time: what waits in its socket's queue is another one's then.
    (tmp_path / "hooked.py").write_text(
        "import app, os\n"
        "from pulsar.apps.socket import SocketServer\n"
        "def hook(worker):\n"
        "    if worker.slot and os.path.exists('broken'):\n"
        "        os._exit(7)\n"
        "server = SocketServer(app.App, name='hooked', on_worker_start=hook)\n"
    )
    with serve(tmp_path, "--workers", 2, "--reuse-port", target="hooked:server") as tree:
        [first, second] = tree.workers()
        (tmp_path / "broken").touch()
        os.kill(second, signal.SIGKILL)
        for _ in range(2):
            with ExitStack() as stack:
                clients = [stack.enter_context(tree.client()) for _ in range(20)]
                assert {client.ask("os.getpid()") for client in clients} == {first}
            tree.wait_for("hooked: worker 1 is started again in 0.4 s")
        (tmp_path / "broken").unlink()
        tree.until_ready(2)
        assert until(lambda: tree.who().pid != first, "the other one answers, too")
        assert tree.stop() == 0


def test_connections_wait_for_the_successor_of_a_killed_worker(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2, "--reuse-port") as tree, ExitStack() as stack:
        [first, second] = tree.workers()
        os.kill(second, signal.SIGSTOP)
        clients = [stack.enter_context(tree.client()) for _ in range(20)]
        for client in clients:
            client.send("os.getpid()")
        os.kill(second, signal.SIGKILL)
        answers = [client.receive() for client in clients]
        assert second not in answers
        assert first in answers
        assert tree.until_ready(2)


def test_the_number_of_processors(tmp_path: Path) -> None:
    processors = len(os.sched_getaffinity(0))
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        with serve(tmp_path, "--workers", "auto") as tree:
            tree.until_ready(1)
    finally:
        os.sched_setaffinity(0, affinity)
    assert len(os.sched_getaffinity(0)) == processors


@pytest.mark.parametrize(
    ("arguments", "workers"), [((), 3), (("--workers", 2), 2)], ids=["given", "flag"]
)
def test_web_concurrency(tmp_path: Path, arguments: tuple[object, ...], workers: int) -> None:
    with serve(tmp_path, *arguments, env={"WEB_CONCURRENCY": "3"}) as tree:
        tree.until_ready(workers)


@pytest.mark.parametrize("reuse_port", ["--no-reuse-port", "--reuse-port"])
def test_a_burst_of_connections_is_spread(tmp_path: Path, reuse_port: str) -> None:
    with serve(tmp_path, "--workers", 4, reuse_port) as tree, ExitStack() as stack:
        clients = [stack.enter_context(tree.client()) for _ in range(200)]
        slots = [client.ask("who()")[1] for client in clients]
        counts = [slots.count(slot) for slot in range(4)]
        assert max(counts) <= 1.5 * 200 / 4, counts
