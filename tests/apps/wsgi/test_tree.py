"""HTTP under a process tree: no request is lost, whatever happens to the workers."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apps.wsgi.client import Answers, BlockingClient, request
from tests.support.process import PATIENCE
from tests.support.tree import PULSAR, Tree, serve, until, write

APP = """
import hashlib, os, time

VERSION = 1

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/until":
        while not os.path.exists(environ["QUERY_STRING"]):
            time.sleep(0.01)
    if path == "/digest":
        size, found = 0, hashlib.sha256()
        while piece := environ["wsgi.input"].read(65536):
            size += len(piece)
            found.update(piece)
        body = f"{size} {found.hexdigest()}".encode()
    elif path == "/large":
        start_response("200 OK", [])
        return (b"x" * 65536 for _ in range(int(environ["QUERY_STRING"])))
    else:
        body = f"{VERSION} {os.getpid()} {path}".encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]

def create_app(greeting="made"):
    def made(environ, start_response):
        start_response("200 OK", [])
        return [greeting.encode()]
    return made

async def later(environ, start_response):
    start_response("200 OK", [])
    return [b"later"]

application = app
"""


def deploy(directory: Path, version: int = 1) -> None:
    write(directory / "app.py", APP.replace("VERSION = 1", f"VERSION = {version}"))


@contextmanager
def served(directory: Path, *options: object, target: str = "app:app") -> Iterator[Tree]:
    deploy(directory)
    with serve(directory, *options, target=target) as tree:
        yield tree


class Load:
    """Clients that ask without a pause, each in a thread, until they are told to stop."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.answered = 0
        self.closes = 0
        self.failures: list[str] = []
        # Nobody can connect any more: that is no failure once the server stops.
        self.refused = 0
        self.stopping = False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    @contextmanager
    def running(self, *kinds: Callable[[], None]) -> Iterator[None]:
        for kind in kinds:
            thread = threading.Thread(target=self._run, args=(kind,))
            self._threads.append(thread)
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(PATIENCE)

    def _run(self, kind: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                kind()
            except Exception as error:
                self.failures.append(f"{kind.__name__}: {error!r}")
                return

    def _count(self, closes: bool = False) -> None:
        with self._lock:
            self.answered += 1
            self.closes += closes

    def _connect(self) -> BlockingClient | None:
        try:
            return BlockingClient(self.address)
        except ConnectionRefusedError:
            if not self.stopping:
                raise
            self.refused += 1
            self._stop.set()
            return None

    def kept(self) -> None:
        """Keeps its connection until it is told to close it."""
        client = self._connect()
        if client is None:
            return
        with client:
            while not self._stop.is_set():
                answer = client.get("/kept")
                assert answer.status == 200
                assert answer.body.endswith(b" /kept")
                self._count(answer.closes)
                if answer.closes:
                    assert client.rest() == b""
                    return

    def piped(self) -> None:
        """The same, and sends three at once."""
        client = self._connect()
        if client is None:
            return
        with client:
            while not self._stop.is_set():
                client.send(b"".join(request(f"/{number}") for number in range(3)))
                for number in range(3):
                    answer = client.answer()
                    assert answer.body.endswith(b" /%d" % number)
                    self._count(answer.closes)
                    if answer.closes:
                        # What was sent before we knew has to be answered, too.
                        assert number == 2
                        assert client.rest() == b""
                        return

    def single(self) -> None:
        """A connection for each request."""
        client = self._connect()
        if client is not None:
            with client:
                answer = client.get("/single")
                assert answer.body.endswith(b" /single")
            self._count()

    def posting(self) -> None:
        """The same, with a body in several packets."""
        client = self._connect()
        if client is not None:
            with client:
                client.send(request("/digest", "Content-Length: 30000", method="POST"))
                for _ in range(3):
                    client.send(b"x" * 10_000)
                assert client.answer().body.startswith(b"30000 ")
            self._count()

    def pooled(self) -> None:
        """httpx, which keeps what it may."""
        with httpx.Client(base_url=f"http://{self.address[0]}:{self.address[1]}") as client:
            while not self._stop.is_set():
                try:
                    answer = client.get("/pooled", timeout=PATIENCE)
                except httpx.ConnectError:
                    if not self.stopping:
                        raise
                    return
                assert answer.text.endswith(" /pooled")
                self._count(answer.headers.get("connection") == "close")

    def everybody(self) -> Any:
        kinds = (self.kept, self.kept, self.piped, self.single, self.posting, self.pooled)
        return self.running(*kinds)

    def more(self, count: int = 100) -> None:
        """Wait until so many more requests have been answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal or self.failures, "requests are answered")
        assert not self.failures


@pytest.mark.timeout(180)
@pytest.mark.parametrize("threads", [0, 3])
def test_no_request_is_lost(tmp_path: Path, threads: int) -> None:
    with served(tmp_path, "--workers", 2, "--threads", threads) as tree:
        tree.until_ready(2)
        load = Load(tree.address)
        with load.everybody():
            load.more()
            for version in (2, 3):
                deploy(tmp_path, version)
                tree.reload()
                load.more()
            tree.control("scale", workers=4)
            tree.until_ready(4)
            load.more()
            tree.control("scale", workers=1)
            load.more()
            tree.until_ready(1)
            # A deploy that is broken changes nothing.
            write(tmp_path / "app.py", "def app(:\n")
            tree.send(signal.SIGHUP)
            tree.wait_for("not reloaded")
            load.more()
            load.stopping = True
            assert tree.stop(signal.SIGTERM) == 0
        assert load.failures == []
        # Kept connections were told to go: at each replacement, and at the end.
        assert load.closes > 0
        assert "Traceback" not in tree.stderr.replace("SyntaxError", "").partition("app.py")[0]


@pytest.mark.timeout(120)
def test_no_request_is_lost_when_workers_are_recycled(tmp_path: Path) -> None:
    with served(tmp_path, "--workers", 2, "--max-requests", 150) as tree:
        load = Load(tree.address)
        tree.until_ready(2)
        first = set(tree.workers())
        with load.everybody():
            until(
                lambda: load.failures or not first & set(tree.workers()), "all have been replaced"
            )
            load.more()
        assert load.failures == []
        assert tree.stop() == 0


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("how", ["TERM", "reload"])
def test_what_is_in_hand_is_answered_and_says_that_it_is_the_last(
    tmp_path: Path, threads: int, how: str
) -> None:
    go = tmp_path / "go"
    with (
        served(tmp_path, "--threads", threads) as tree,
        BlockingClient(tree.address) as busy,
        BlockingClient(tree.address) as uploading,
        BlockingClient(tree.address) as half,
    ):
        for client in (busy, uploading, half):
            assert not client.get("/before").closes
        uploading.send(request("/digest", "Content-Length: 10", method="POST") + b"12345")
        half.send(b"GET /half HTTP/1.1\r\n")
        busy.send(request(f"/until?{go}"))
        if how == "TERM":
            tree.send(signal.SIGTERM)
            tree.wait_for("stopping gracefully")
        else:
            deploy(tmp_path, 2)
            tree.send(signal.SIGHUP)
            tree.wait_for("SIGHUP: reloading")
        go.touch()
        uploading.send(b"67890")
        half.send(b"Host: a\r\n\r\n")
        answer = uploading.answer()
        assert answer.body == f"10 {hashlib.sha256(b'1234567890').hexdigest()}".encode()
        assert half.answer().body.startswith(b"1 ")
        answer = busy.answer()
        assert answer.body.startswith(b"1 ")
        if not answer.closes:
            # It was made before the worker was told; then there is a next one, which says it.
            while not busy.get("/after").closes:
                pass
        assert busy.rest() == b""
        if how == "reload":
            tree.wait_for("reloaded: generation 2 serves")
            assert tree.stop() == 0
        else:
            assert tree.wait() == 0


def test_an_idle_connection_is_answered_once_more(tmp_path: Path) -> None:
    with served(tmp_path) as tree, BlockingClient(tree.address) as idle:
        assert not idle.get("/").closes
        tree.send(signal.SIGTERM)
        tree.wait_for("stopping gracefully")
        answers = [idle.get("/")]
        while not answers[-1].closes:
            answers.append(idle.get("/"))
        assert all(answer.status == 200 for answer in answers)
        assert idle.rest() == b""
        assert tree.wait() == 0


# Memory


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.timeout(120)
@pytest.mark.parametrize("threads", [0, 2])
def test_large_bodies_take_little_memory(tmp_path: Path, threads: int) -> None:
    size = 200 * 2**20
    with served(tmp_path, "--threads", threads) as tree, BlockingClient(tree.address) as client:
        client.get("/")
        [worker] = tree.workers()
        before = peak(worker)
        piece = bytes(2**20)
        client.send(request("/digest", f"Content-Length: {size}", method="POST"))
        for _ in range(size // len(piece)):
            client.send(piece)
        assert client.answer().body.startswith(b"%d " % size)
        assert peak(worker) - before < 32 * 2**20

        client.send(request("/large?3200", version="1.0"))
        got = 0
        while data := client.sock.recv(2**20):
            got += len(data)
        assert got > size
        assert peak(worker) - before < 32 * 2**20
        assert tree.stop() == 0


def test_a_client_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    with served(tmp_path) as tree, BlockingClient(tree.address) as slow:
        slow.get("/")
        [worker] = tree.workers()
        before = peak(worker)
        slow.send(request("/large?100000"))
        slow.sock.recv(1000)
        for _ in range(100):
            with BlockingClient(tree.address) as client:
                assert client.get("/").status == 200
        assert peak(worker) - before < 32 * 2**20


# What `pulsar serve` takes


@pytest.mark.parametrize(
    ("target", "options", "body"),
    [
        ("app:app", (), b"1 "),
        ("app", (), b"1 "),
        ("app:create_app()", (), b"made"),
        ("app:create_app('given')", (), b"given"),
        ("app:later", ("--kind", "wsgi"), b"later"),
    ],
)
def test_targets(tmp_path: Path, target: str, options: tuple[str, ...], body: bytes) -> None:
    with (
        served(tmp_path, *options, target=target) as tree,
        BlockingClient(tree.address) as client,
    ):
        assert client.get("/").body.startswith(body)


def test_alone(tmp_path: Path) -> None:
    deploy(tmp_path)
    arguments = (PULSAR, "serve", "app:app", "--bind", "127.0.0.1:0", "--workers", 0)
    with Tree(*arguments, cwd=tmp_path) as tree:
        with BlockingClient(tree.address) as client:
            answer = client.get("/x")
            assert answer.body == f"1 {tree.pid} /x".encode()
        assert tree.stop() == 0


def test_settings_of_the_command_line(tmp_path: Path) -> None:
    options = ("--root-path", "/shop", "--max-body", "1K", "--no-server-header")
    with served(tmp_path, *options) as tree, BlockingClient(tree.address) as client:
        answer = client.get("/shop/x")
        assert answer.body.endswith(b" /x")
        assert "Server" not in answer
        client.send(request("/", method="POST", body=b"x" * 1025))
        assert client.answer().status == 413


def test_a_thousand_requests_in_one_packet(tmp_path: Path) -> None:
    with served(tmp_path) as tree, socket.create_connection(tree.address, PATIENCE) as sock:
        sender = threading.Thread(
            target=sock.sendall, args=(b"".join(request(f"/{n}") for n in range(1000)),)
        )
        sender.start()
        answers = Answers()
        for number in range(1000):
            while (answer := answers.take()) is None:
                answers.feed(sock.recv(65536))
            assert answer.body.endswith(b" /%d" % number)
        sender.join()


def test_workers_share_one_log(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    options = ("--workers", 2, "--access-log", log, "--access-log-format", "%(p)s %(r)s %(s)s")
    with served(tmp_path, *options) as tree:
        tree.until_ready(2)
        for number in range(50):
            with BlockingClient(tree.address) as client:
                client.get(f"/{number}")
        assert tree.stop() == 0
    lines = log.read_text().splitlines()
    assert sorted(int(line.split()[2][1:]) for line in lines) == list(range(50))
    assert all(line.endswith(" HTTP/1.1 200") for line in lines)
    assert os.getpid() not in {int(line.split()[0].strip("<>")) for line in lines}
