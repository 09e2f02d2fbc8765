"""An even share of the connections: the table, when to step back, and four real workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from pulsar.protocols import TcpServer
from pulsar.protocols import balance as balance_module
from pulsar.protocols.balance import Balance, Table
from tests.support import loops
from tests.support.conformance import FramedEcho, echoes
from tests.support.flavours import PATIENCE, Flavour, Peer, eventually
from tests.support.process import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.certs import Certificates

ROOT = Path(__file__).parents[2]
WORKERS = 4
BURST = 200


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.close()


@contextlib.contextmanager
def joined(table: Table, *counts: int) -> Iterator[list[Balance]]:
    """A worker for each of ``counts``, with so many connections."""
    with contextlib.ExitStack() as stack:
        workers = []
        for count in counts:
            worker = Balance.attach(os.dup(table.descriptor), table.take())
            stack.callback(worker.close)
            worker.join()
            worker.lost(count)
            workers.append(worker)
        yield workers


class Clock:
    """Stands for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(balance_module, "time", clock)
    return clock


# -- the table


def test_a_table_of_workers(table: Table) -> None:
    assert table.connections() == {}
    cells = [table.take() for _ in range(3)]
    assert cells == [1, 2, 3]
    assert table.connections() == {}  # none of them listens yet
    with contextlib.ExitStack() as stack:
        workers = [Balance.attach(os.dup(table.descriptor), cell) for cell in cells]
        for worker in workers:
            stack.callback(worker.close)
            worker.join()
        assert table.connections() == {1: 0, 2: 0, 3: 0}
        assert workers[1].accepted(1, 1) == 0
        assert workers[2].accepted(1, 1) == 0
        assert workers[2].accepted(2, 2) == 0
        assert table.connections() == {1: 0, 2: 1, 3: 2}
        workers[2].lost(1)
        workers[0].leave()
        assert table.connections() == {2: 1, 3: 1}
        # Killed: nobody else would say so.
        table.free(2)
        table.free(2)
        assert table.connections() == {3: 1}
        assert table.take() == 2
        assert table.take() == 4


def test_a_table_that_is_full() -> None:
    table = Table(2)
    assert [table.take(), table.take()] == [1, 2]
    with pytest.raises(LookupError, match="all 2 cells of the table are taken"):
        table.take()
    table.free(1)
    assert table.take() == 1
    table.close()
    table.close()


def test_a_cell_that_is_not_there(table: Table) -> None:
    for cell in (0, -1, table.capacity + 1):
        descriptor = os.dup(table.descriptor)
        with pytest.raises(ValueError, match=f"there is no cell {cell} in a table of"):
            Balance.attach(descriptor, cell)
    worker = Balance.attach(os.dup(table.descriptor), table.capacity)
    worker.accepted(1, 1)
    worker.close()


def test_a_table_of_ones_own() -> None:
    memory = memoryview(bytearray(4 * 5)).cast("i")
    worker = Balance(memory, 2)
    worker.join()
    worker.accepted(3, 7)
    assert memory.tolist() == [0, 0, 3, 0, 7]
    worker.close()
    assert memory.tolist() == [0, 0, -1, 0, 7]


# -- when to step back


@pytest.mark.parametrize(
    ("count", "others", "steps_back"),
    [
        (8, [0, 0, 0], False),  # few, whatever the others have
        (9, [0, 0, 0], True),
        (9, [], False),  # alone
        (9, [5, 5, 5], False),
        (31, [20, 20, 20], True),
        (30, [25, 25, 25], False),
        (64, [45, 45, 46], False),  # 1.25 times the mean and 2
        (66, [45, 45, 46], True),
        (1000, [0], True),
        (9, [0] * 200, True),
    ],
)
def test_a_worker_with_clearly_more_than_the_mean_steps_back(
    count: int, others: Sequence[int], steps_back: bool, table: Table
) -> None:
    with joined(table, 0, *others) as (worker, *_):
        assert bool(worker.accepted(count, 8)) is steps_back


def test_those_who_have_left_are_not_counted(table: Table) -> None:
    with joined(table, 0, 0, 0, 30) as (worker, *others):
        assert worker.accepted(30, 8)
        others[0].leave()
        others[1].leave()
        assert not worker.accepted(30, 16)


def test_a_look_at_the_others_is_taken_now_and_then(table: Table) -> None:
    """Or when there are more connections than the others allowed at the last one."""
    with joined(table, 0, 100) as (worker, other):
        assert not worker.accepted(50, 8)
        other.lost(0)
        assert [bool(worker.accepted(50, total)) for total in range(9, 17)] == [False] * 7 + [True]
    with joined(table, 0, 20) as (worker, _):
        assert not worker.accepted(8, 1)
        for total in range(2, 8):
            count = 15 + 4 * total
            assert bool(worker.accepted(count, total)) is (count > 38)


def test_others_take_what_is_queued(table: Table, clock: Clock) -> None:
    with joined(table, 0, 0, 0) as (worker, one, other):
        assert worker.accepted(9, 9) == pytest.approx(0.002)
        one.accepted(1, 1)
        assert worker.longer(queued=True) == 0
        assert worker.accepted(10, 10) > 0
        assert worker.longer(queued=False) == 0  # there was nothing to take
        other.accepted(1, 1)
        assert worker.accepted(11, 11) > 0


def test_those_who_take_nothing_are_left_out_until_they_do(table: Table, clock: Clock) -> None:
    with joined(table, 0, 0, 30) as (worker, stuck, other):
        step = worker.accepted(31, 8)
        waited = 0.0
        while step:
            waited += step
            clock.now += step
            other.accepted(31, 9)  # more than the mean: it is nobody to step back for
            step = worker.longer(queued=True)
        assert waited == pytest.approx(0.030)
        assert not worker.accepted(32, 16)
        assert worker.accepted(60, 24)  # of those who take something it has too many
        assert not worker.longer(queued=False)
        stuck.accepted(1, 1)
        assert worker.accepted(33, 32)


def test_a_machine_without_time_is_not_taken_for_stuck(table: Table, clock: Clock) -> None:
    """We are woken late here, so others may be late, too; but not for ever."""
    with joined(table, 0, 0) as (worker, other):
        for late in (0.002, 0.01, 0.05):
            began = clock.now
            step = worker.accepted(31, 8)
            while step:
                clock.now += step + late
                step = worker.longer(queued=True)
            assert 0.038 <= clock.now - began < 0.1 + late
            assert not worker.accepted(32, 16)
            other.accepted(0, int(late * 1000))


def test_nobody_steps_back_for_those_who_keep_nothing(table: Table, clock: Clock) -> None:
    """Their connections are over at once: what is to be shared is the work."""
    with joined(table, 0, 5, 30) as (worker, busy, _):
        assert worker.accepted(30, 8)
        for total in range(1, 11):
            busy.accepted(6, total)
        busy.lost(5)
        assert worker.longer(queued=True) == 0
        for total in range(9, 40):
            assert not worker.accepted(30, total)
        clock.now += 0.11
        assert worker.accepted(30, 40)


def test_counters_that_wrap(table: Table, clock: Clock) -> None:
    with joined(table, 0, 0) as (worker, other):
        other.accepted(0, 2**31 - 1)
        assert worker.accepted(9, 2**40)
        other.accepted(2, 2**31 + 1)
        assert worker.longer(queued=True) == 0
        assert worker.accepted(9, 2**40 + 8)


# -- a server that has one


def test_a_server_counts_its_connections(
    flavour: Flavour, table: Table, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        with joined(table, 0) as (worker,):
            worker.leave()
            server = TcpServer(FramedEcho, address=flavour.address, balance=worker)
            assert table.connections() == {}
            await server.start_serving(sslcontext=flavour.server_context, handshake_timeout=0.1)
            assert table.connections() == {1: 0}
            peers = [await flavour.connect(server) for _ in range(3)]
            for peer in peers:
                await echoes(peer)
            # Under TLS it counts while it shakes hands, and no longer.
            with await flavour.knock(server):
                await eventually(lambda: table.connections() == {1: 4})
            await eventually(lambda: table.connections() == {1: 3})
            peers.pop().close()
            await eventually(lambda: table.connections() == {1: 2})
            closing = asyncio.get_running_loop().create_task(server.close(60, linger=0.1))
            await eventually(lambda: not server.accepting)
            assert table.connections() == {}
            for peer in peers:
                await peer.farewell()
                peer.close()
            await closing
            assert table.connections() == {}

    run(main())


def test_a_handshake_that_is_aborted_is_counted_no_more(
    tls: Flavour, table: Table, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        with joined(table, 0) as (worker,):
            server = TcpServer(FramedEcho, address=tls.address, balance=worker)
            await server.start_serving(sslcontext=tls.server_context)
            with await tls.knock(server):
                await eventually(lambda: table.connections() == {1: 1})
                server.abort()
                assert table.connections() == {1: 0}
                await server.close(0)

    run(main())


def test_a_server_that_has_stepped_back_says_that_it_accepts(
    tcp: Flavour, table: Table, run: Callable[..., Any]
) -> None:
    """And it does, in a moment; also when it is closed meanwhile."""

    async def main() -> None:
        with joined(table, 0, 0) as (worker, _):
            for closes in (False, True):
                worker._absent.clear()
                seen: list[tuple[bool, bool, list[str]]] = []
                server = TcpServer(FramedEcho, address=tcp.address, balance=worker)

                def look(
                    arg: Any, exc: Any = None, server: TcpServer = server, seen: Any = seen
                ) -> None:
                    stepped_back = server._balance_timer is not None
                    seen.append((stepped_back, server.accepting, server.info()["paused"]))

                await server.start_serving()
                server.bind_event("connection_made", look)
                server.pause()
                await eventually(lambda server=server: server._server is None)
                peers = [await tcp.knock(server) for _ in range(30)]
                server.resume()
                await eventually(lambda seen=seen: (True, True, []) in seen)
                if not closes:
                    for peer in peers:
                        await echoes(peer)
                    await server.close(0)
                else:
                    closing = asyncio.get_running_loop().create_task(server.close(60, linger=0.1))
                    for peer in peers:
                        assert await peer.farewell() == b""
                    await closing
                assert server.sessions == 30
                for peer in peers:
                    peer.close()

    run(main())


# -- four workers

# Each flavour, and each loop; four processes are too dear for each with each.
over_all = pytest.mark.parametrize(
    ("flavour", "loop_kind"),
    [("tcp", "asyncio"), ("tcp", "uvloop"), ("tls", "asyncio"), ("unix", "uvloop")],
    indirect=["flavour"],
)


class Workers:
    """Processes that serve one socket; a context manager."""

    def __init__(self, at: Flavour, loop_kind: str, certs: Certificates) -> None:
        self.at = at
        self.table = Table()
        self.sock = socket.socket(socket.AF_UNIX if at.unix else socket.AF_INET)
        self.sock.bind(at.address.removeprefix("unix:") if at.unix else at.address)
        self.sock.listen(2048)
        files = [str(certs.server_cert), str(certs.server_key)] if at.tls else []
        descriptors = (self.sock.fileno(), self.table.descriptor)
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    Path(__file__).with_name("worker.py"),
                    loop_kind,
                    *map(str, (*descriptors, self.table.take())),
                    *files,
                ],
                cwd=ROOT,
                env={**clean_environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
                pass_fds=descriptors,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(WORKERS)
        ]

    def __enter__(self) -> Self:
        try:
            self._expect("ready")
            # What a process does when it begins, it has done then.
            self.do("nothing")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            with process:
                process.kill()
        self.sock.close()
        self.table.close()

    def command(self, word: str) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n")
            process.stdin.flush()

    def do(self, word: str) -> None:
        self.command(word)
        self._expect("done")

    def ended(self) -> list[int]:
        """How many connections each of them has accepted, after it was closed."""
        sessions = []
        for process in self.processes:
            out, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, errors) == (0, "")
            sessions.append(int(out))
        return sessions

    def _expect(self, word: str) -> None:
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line != f"{word}\n":
                process.kill()
                raise AssertionError(f"{line!r}: {process.communicate()[1]}")

    async def knock(self) -> Peer:
        sock = socket.socket(self.sock.family)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.sock.getsockname())
        return Peer(sock, self.at.client_context)


async def number(peer: Peer) -> int:
    """The number of the worker that has ``peer``."""
    await peer.handshake()
    await peer.send(b"?\n")
    answer = await peer.receive(2)
    return int(answer)


async def burst(workers: Workers) -> tuple[list[Peer], Counter[int]]:
    """Connections, opened as fast as can be, and how many each worker has got."""
    peers = [await workers.knock() for _ in range(BURST)]
    return peers, Counter(await asyncio.gather(*map(number, peers)))


@over_all
def test_a_burst_is_spread(flavour: Flavour, loop_kind: str, certs: Certificates) -> None:
    async def main() -> None:
        peers, share = await burst(workers)
        assert sum(share.values()) == BURST
        assert max(share.values()) <= 1.5 * BURST / WORKERS, share
        assert workers.table.connections() == dict(share)
        for peer in peers:
            peer.close()
        await eventually(lambda: sum(workers.table.connections().values()) == 0)

    with Workers(flavour, loop_kind, certs) as workers:
        loops.run(main())
        workers.command("close")
        assert sum(workers.ended()) == BURST


def test_nobody_waits_for_a_worker_that_is_stuck(
    tcp: Flavour, loop_kind: str, certs: Certificates
) -> None:
    """It is stopped: not dead, not busy, and it never takes a connection."""

    async def main() -> None:
        stuck = workers.processes[0]
        stuck.send_signal(signal.SIGSTOP)
        peers, share = await burst(workers)
        assert (share[1], sum(share.values())) == (0, BURST)
        stuck.send_signal(signal.SIGCONT)
        while share[1] == 0:
            peers.append(await workers.knock())
            share[await number(peers[-1])] += 1
        # It is one of them again, and has to catch up.
        more, its_share = await burst(workers)
        share += its_share
        assert max(share.values()) <= 1.5 * sum(share.values()) / WORKERS, share
        for peer in peers + more:
            peer.close()

    with Workers(tcp, loop_kind, certs) as workers:
        loops.run(main())
        workers.command("close")
        workers.ended()


@over_all
def test_workers_that_stop_together_empty_their_queue(
    flavour: Flavour, loop_kind: str, certs: Certificates
) -> None:
    """Each of them takes what it can get; nobody who was let in is turned away."""

    async def main() -> None:
        workers.do("pause")
        peers = [await workers.knock() for _ in range(BURST)]
        workers.command("close")
        share = Counter(await asyncio.gather(*map(number, peers)))
        for peer in peers:
            assert await peer.farewell() == b""
            peer.close()
        assert sum(share.values()) == BURST

    with Workers(flavour, loop_kind, certs) as workers:
        loops.run(main())
        assert sum(workers.ended()) == BURST
