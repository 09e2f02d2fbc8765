"""Datagrams: a peer stays with its worker, and what comes meanwhile waits for the next one."""

import ast
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from pulsar.errors import ControlError
from tests.support.process import PATIENCE
from tests.support.tree import PULSAR, Tree, deploy, gone, serve, until, write


class Peer:
    """A socket with one address of its own."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect((host, int(port)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, expression: str) -> None:
        self.sock.send(expression.encode())

    def receive(self) -> Any:
        return ast.literal_eval(self.sock.recv(65536).decode())

    def ask(self, expression: str) -> Any:
        self.send(expression)
        return self.receive()


@contextmanager
def peers(tree: Tree, count: int) -> Iterator[list[Peer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(tree.addresses[0])) for _ in range(count)]


@contextmanager
def serve_datagrams(directory: Path, *arguments: object) -> Iterator[Tree]:
    with serve(directory, *arguments, target="app:UdpApp") as tree:
        yield tree


def test_a_peer_stays_with_its_slot_and_a_reload_loses_nothing(tmp_path: Path) -> None:
    with serve_datagrams(tmp_path, "--workers", 3) as tree, peers(tree, 30) as clients:
        slots = [client.ask("who()")[1] for client in clients]
        assert set(slots) == {0, 1, 2}
        deploy(tmp_path, 2)
        tree.send(signal.SIGHUP)
        # One at a time from each of them, all the while.
        generation = 1
        while generation == 1:
            generation = tree.status().generation
            for client, slot in zip(clients, slots, strict=True):
                assert client.ask("who()[1]") == slot
        tree.until_ready(3, generation=2)
        assert [client.ask("who()")[:2] for client in clients] == [(2, slot) for slot in slots]
        assert tree.stop() == 0


def test_a_slow_answer_comes_from_the_worker_that_was_asked(tmp_path: Path) -> None:
    # A datagram that is being served when its worker is replaced: that one answers.
    with serve_datagrams(tmp_path) as tree, peers(tree, 1) as [client]:
        [worker] = tree.workers()
        waiting = str(tmp_path / "waiting")
        client.send(f"(block({str(tmp_path / 'go')!r}, {waiting!r}), os.getpid())[1]")
        until(lambda: os.path.exists(waiting), "the worker stands still")
        os.kill(worker, signal.SIGTERM)
        client.send("os.getpid()")
        (tmp_path / "go").touch()
        assert client.receive() == worker
        # Read before the signal, or left to the successor.
        assert client.receive()
        until(lambda: gone(worker), "it has gone")
        assert client.ask("os.getpid()") == tree.workers()[0] != worker
        assert tree.stop() == 0


def test_the_sockets_of_slots_that_have_no_worker_are_read(tmp_path: Path) -> None:
    with serve_datagrams(tmp_path, "--workers", 3) as tree, peers(tree, 30) as clients:
        slots = [client.ask("who()[1]") for client in clients]
        assert set(slots) == {0, 1, 2}
        tree.control("scale", workers=1)
        [worker] = tree.workers()
        assert {client.ask("os.getpid()") for client in clients} == {worker}
        tree.control("scale", workers=3)
        tree.until_ready(3)
        assert [client.ask("who()[1]") for client in clients] == slots


def test_what_was_not_read_by_a_killed_worker_is_read_by_its_successor(tmp_path: Path) -> None:
    with serve_datagrams(tmp_path, "--workers", 2) as tree, peers(tree, 10) as clients:
        first, second = tree.workers()
        theirs = [client for client in clients if client.ask("os.getpid()") == second]
        assert theirs
        os.kill(second, signal.SIGSTOP)
        for client in theirs:
            client.send("who()[1:]")
        os.kill(second, signal.SIGKILL)
        for client in theirs:
            slot, pid = client.receive()
            assert slot == 1 or pid == first
            assert pid != second
        assert tree.until_ready(2)


def test_one_socket_for_all_when_that_is_asked_for(tmp_path: Path) -> None:
    options = ("--workers", 2, "--no-reuse-port")
    with serve_datagrams(tmp_path, *options) as tree, peers(tree, 4) as clients:
        workers = set(tree.workers())
        for _ in range(5):
            assert {client.ask("os.getpid()") for client in clients} <= workers
        deploy(tmp_path, 2)
        tree.reload()
        tree.until_ready(2, generation=2)
        assert {client.ask("VERSION") for client in clients} == {2}


def test_two_applications_in_one_tree(tmp_path: Path) -> None:
    deploy(
        tmp_path,
        more="from pulsar.application import MultiApp\n"
        "from pulsar.apps.socket import SocketServer, UdpSocketServer\n"
        "shop = MultiApp(\n"
        "    SocketServer(App, name='streams', bind='127.0.0.1:0', workers=2),\n"
        "    UdpSocketServer(UdpApp, name='datagrams', bind='udp://127.0.0.1:0'),\n"
        "    name='shop',\n"
        ")\n",
    )
    with Tree(PULSAR, "serve", "app:shop", cwd=tmp_path, listens=2) as tree:
        status = tree.until_ready(3)
        assert (status.name, len(status.forkservers)) == ("shop", 1)
        assert [(app.name, app.ready) for app in status.applications] == [
            ("streams", 2),
            ("datagrams", 1),
        ]
        with Peer(status.applications[1].addresses[0]) as client:
            assert client.ask("who()") == (1, 0, tree.workers(1)[0])
            tree.control("scale", workers=2, application="datagrams")
            tree.until_ready(4)
            source = (tmp_path / "app.py").read_text()
            write(tmp_path / "app.py", source.replace("VERSION = 1", "VERSION = 2"))
            done = tree.command("reload")
            assert done.returncode == 0, done.stderr
            assert client.ask("VERSION") == tree.who().version == 2
        write(tmp_path / "app.py", source.replace("name='datagrams'", "name='packets'"))
        with pytest.raises(ControlError, match="it serves other applications"):
            tree.control("reload")
        done = tree.command("scale", 2)
        assert done.returncode == 1
        assert "say of which application: streams, datagrams" in done.stderr
        assert tree.stop() == 0
