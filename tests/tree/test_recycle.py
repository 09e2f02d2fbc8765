"""Workers that are replaced because of what they have served, their age, or their size."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.tree import Tree, deploy, gone, serve, until

# Notes when workers start and stop, one line each.
SERVER = """
from pulsar.apps.socket import SocketServer

def note(text, worker):
    with open("notes", "a") as notes:
        notes.write(f"{text} {worker.slot} {os.getpid()}\\n")

async def started(worker):
    note("begins", worker)
    # Time for others to begin as well, if they did.
    await asyncio.sleep(0.1)
    note("serves", worker)

def stopped(worker):
    note("ends", worker)

server = SocketServer(App, name="shop", on_worker_start=started, on_worker_stop=stopped)
"""


def notes(directory: Path) -> list[list[str]]:
    return [line.split() for line in (directory / "notes").read_text().splitlines()]


def until_replaced(tree: Tree, *pids: int) -> None:
    until(lambda: not set(pids) & set(tree.workers()), "they are replaced")
    for pid in pids:
        until(lambda: gone(pid), "it has gone")  # noqa: B023 - at once


def check_one_at_a_time(directory: Path, workers: int) -> None:
    """Each replacement serves before its predecessor ends, and before the next one begins."""
    found = notes(directory)
    beginning: set[str] = set()
    serving: dict[str, str] = {}
    started = 0
    for text, slot, pid in found:
        if text == "begins":
            started += 1
            beginning.add(pid)
            assert started <= workers or len(beginning) == 1, found
        elif text == "serves":
            beginning.discard(pid)
            serving[slot] = pid
        else:
            assert serving[slot] != pid, found


@pytest.mark.parametrize("reuse_port", ["--no-reuse-port", "--reuse-port"])
def test_after_so_many_requests(tmp_path: Path, reuse_port: str) -> None:
    deploy(tmp_path, more=SERVER)
    arguments = ("--workers", 2, "--max-requests", 10, "--max-requests-jitter", 0, reuse_port)
    with serve(tmp_path, *arguments, target="app:server") as tree, ExitStack() as stack:
        workers = tree.workers()
        busy = [stack.enter_context(tree.client_of(pid)) for pid in workers]
        for client in busy:
            client.send(f"until({str(tmp_path / 'go')!r})")
        while set(workers) & set(tree.workers()):
            assert tree.ask("VERSION") == 1
        # What was under way when they were replaced is answered.
        assert not any(gone(pid) for pid in workers)
        (tmp_path / "go").touch()
        assert all(client.receive() for client in busy)
        for pid in workers:
            until(lambda: gone(pid), "it has gone")  # noqa: B023 - at once
            assert f"({pid}) is replaced: it has served 10 (max_requests)" in tree.stderr
        tree.until_ready(2)
        check_one_at_a_time(tmp_path, 2)
        assert tree.status().applications[0].restarts == 0
        assert tree.stop() == 0


def test_not_all_after_as_many(tmp_path: Path) -> None:
    arguments = ("--workers", 4, "--max-requests", 1000, "--max-requests-jitter", 1_000_000)
    deploy(
        tmp_path,
        more="limits = lambda: [s.max_requests for s in server.servers]\n"
        "from pulsar.apps.socket import SocketServer\nserver = SocketServer(App)\n",
    )
    with serve(tmp_path, *arguments, target="app:server") as tree, ExitStack() as stack:
        clients = [stack.enter_context(tree.client_of(pid)) for pid in tree.workers()]
        limits = [client.ask("limits()")[0] for client in clients]
        assert len(set(limits)) > 1
        assert min(limits) >= 1000


def test_after_some_time(tmp_path: Path) -> None:
    deploy(tmp_path, more=SERVER)
    with serve(tmp_path, "--workers", 2, "--max-lifetime", 0.5, target="app:server") as tree:
        workers = tree.workers()
        deadline = time.monotonic() + 30
        while set(workers) & set(tree.workers()):
            assert tree.ask("VERSION") == 1
            assert time.monotonic() < deadline
        until_replaced(tree, *workers)
        check_one_at_a_time(tmp_path, 2)
        assert "s (max_lifetime)" in tree.stderr
        assert tree.stop() == 0


def test_when_they_have_grown(tmp_path: Path) -> None:
    # A heartbeat each third of a second.
    arguments = ("--workers", 2, "--max-memory", "112M", "--timeout", 2)
    with serve(tmp_path, *arguments) as tree:
        [big, small] = tree.workers()
        with tree.client_of(big) as client:
            client.send(f"(kept.append(b'x' * 2**27), until({str(tmp_path / 'go')!r}))[1]")
            tree.wait_for(f"({big}) is replaced: it has ")
            until(lambda: big not in tree.workers(), "it is replaced")
            (tmp_path / "go").touch()
            assert client.receive()
        until_replaced(tree, big)
        assert tree.until_ready(2)
        assert tree.workers()[1] == small
        assert "MiB of memory (max_memory)" in tree.stderr
        assert tree.stop() == 0


def test_a_replacement_that_cannot_start(tmp_path: Path) -> None:
    deploy(
        tmp_path,
        more="from pulsar.apps.socket import SocketServer\n"
        "def hook(worker):\n"
        "    assert not os.path.exists('broken'), 'it is broken'\n"
        "server = SocketServer(App, name='shop', on_worker_start=hook)\n",
    )
    with serve(tmp_path, "--max-requests", 1, target="app:server") as tree:
        [worker] = tree.workers()
        (tmp_path / "broken").touch()
        assert tree.ask("VERSION") == 1
        tree.wait_for("shop: worker 0 goes on, for its replacement cannot start")
        tree.wait_for("AssertionError: it is broken")
        assert tree.who().pid == worker
        (tmp_path / "broken").unlink()
        until_replaced(tree, worker)
        assert tree.who().pid != worker
        assert tree.stop() == 0
