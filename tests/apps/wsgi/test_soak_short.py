"""What lasts long or is large, in short; the long forms are in benchmarks/soak and /chaos.

Owns: memory over many requests and large bodies, slow clients, a tree under HTTP load.
Leaves: each of these by itself to its own tests.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.load import HTTP, HTTP_EACH
from benchmarks.soak.large import WAYS, transfer
from benchmarks.soak.serving import MIB, Serving
from tests.support.process import PATIENCE, clean_environment

from .client import BlockingClient, request

ROOT = Path(__file__).parents[3]

linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@pytest.fixture(scope="module", params=[[], ["--threads=2"]], ids=["loop", "threads"])
def server(request: pytest.FixtureRequest) -> Iterator[Serving]:
    with Serving("--workers=0", *request.param) as serving:
        yield serving
        assert "Traceback" not in serving.log()


@linux
@pytest.mark.parametrize("way", WAYS)
def test_large_bodies_take_little_memory(server: Serving, way: str) -> None:
    more, _ = transfer(server, way, 24 * MIB)
    assert more < 8 * MIB


@linux
@pytest.mark.parametrize("varied", [False, True], ids=["alike", "varied"])
def test_many_requests_leave_no_memory_behind(server: Serving, varied: bool) -> None:
    batch = 200

    def ask(first: int, many: int) -> None:
        for start in range(first, first + many, batch):
            numbers = range(start, start + batch)
            client.send(b"".join(request(f"/{n if varied else 0}") for n in numbers))
            assert all(client.answer().status == 200 for _ in numbers)

    with BlockingClient(("127.0.0.1", server.port)) as client:
        ask(0, 2000)
        before = server.memory()
        ask(2000, 6000)
        assert server.memory() - before < MIB


def test_slow_clients_are_in_nobodys_way(server: Serving) -> None:
    beginnings = [
        b"GET / HTTP/1.1\r\nHost: a\r\nX",
        b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nh",
        b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5",
        b"GET /page?size=4000000 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /iterable?size=4000000 HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
    slow: list[socket.socket] = []
    try:
        for number in range(60):
            sock = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
            slow.append(sock)
            sock.sendall(beginnings[number % len(beginnings)])
        with BlockingClient(("127.0.0.1", server.port)) as client:
            for _ in range(20):
                assert client.get().body == b"Hello, World!"
    finally:
        for sock in slow:
            sock.close()


def test_the_load_reads_answers_as_they_come() -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    wrong = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nhi"
    assert HTTP.messages(one + last + one[:-1]) == ([(b"hi", False), (b"", True)], one[:-1])
    assert HTTP.messages(one[:20]) == ([], one[:20])
    [(text, closes)], _ = HTTP.messages(wrong)
    assert (text == b"hi", closes) == (False, False)
    assert b"Connection: close" in HTTP_EACH.question(b"hi")


@linux
@pytest.mark.timeout(120)
def test_no_request_is_lost_by_a_tree_that_changes() -> None:
    # Lateness tells something on a quiet machine only.
    command = ["--serve=web", "--plan=reload,recycle,scale=1", "--workers=2"]
    command += ["--calm=0.2", "--pace=100", "--late=5000"]
    ran = subprocess.run(
        [sys.executable, ROOT / "benchmarks/chaos/run.py", *command],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert (summary["broken"], summary["failed"]) == ([], 0)
    assert summary["sent"] > 0
