"""The listening sockets of a tree: shared or one for each slot, kept, exchanged, closed."""

import errno
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulsar.actors.listeners import Listeners, close_bound
from pulsar.actors.served import Listen, Listening
from pulsar.errors import ImproperlyConfigured

linux = pytest.mark.skipif(sys.platform != "linux", reason="it is done by Linux")

SHARED = Listen("127.0.0.1:0")
OWN = Listen("127.0.0.1:0", reuse_port=True)
UDP = Listen("udp://127.0.0.1:0", datagram=True, reuse_port=True)


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    with Listeners() as found:
        yield found
    assert found.binds == []


def have(listeners: Listeners, *listens: Listen) -> None:
    close_bound(change(listeners, *listens))


def change(listeners: Listeners, *listens: Listen) -> list[object]:
    """Have other binds; returns what was dropped."""
    binds = listeners.prepare(listens)
    listeners.commit(binds)
    return binds.dropped  # type: ignore[return-value]


def names(listening: list[Listening]) -> list[object]:
    return [one.sock.getsockname() for one in listening]


def knock(address: object, family: socket.AddressFamily = socket.AF_INET) -> None:
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect(address)  # type: ignore[arg-type]


def test_all_slots_share_a_socket(listeners: Listeners) -> None:
    have(listeners, SHARED)
    assert listeners.of_slot(0) == listeners.of_slot(7)
    [one] = listeners.of_slot(0)
    assert (one.bind, one.plain, one.foreign) == ("127.0.0.1:0", False, False)
    assert (listeners.own_of_slot(0), listeners.slots, listeners.shared) == ([], set(), True)
    assert listeners.names == [(one.sock.getsockname(), False)]
    assert listeners.addresses == [f"127.0.0.1:{one.sock.getsockname()[1]}"]
    knock(one.sock.getsockname())


@pytest.mark.parametrize("listen", [OWN, UDP], ids=["tcp", "udp"])
def test_each_slot_has_a_socket_at_the_same_address(listeners: Listeners, listen: Listen) -> None:
    have(listeners, listen)
    sockets = [listeners.of_slot(slot) for slot in (0, 1, 5)]
    assert len({one.sock for [one] in sockets}) == 3
    assert len({one.sock.getsockname() for [one] in sockets}) == 1
    assert listeners.of_slot(5) == sockets[2] == listeners.own_of_slot(5)
    assert listeners.own_of_slot(2) == []
    assert (listeners.slots, listeners.shared) == ({0, 1, 5}, False)
    assert len(listeners.addresses) == 1


def test_both_kinds_and_unix(listeners: Listeners, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    # A path cannot be bound by several sockets.
    have(
        listeners,
        SHARED,
        OWN._replace(bind="127.0.0.1:0?tls=off"),
        Listen(f"unix:{path}", reuse_port=True),
    )
    first, second = listeners.of_slot(0), listeners.of_slot(1)
    assert [one.plain for one in first] == [False, True, False]
    assert [a.sock is b.sock for a, b in zip(first, second, strict=True)] == [True, False, True]
    assert len(listeners.own_of_slot(1)) == 1
    assert listeners.paths == [str(path)]
    assert listeners.binds == ["127.0.0.1:0", "127.0.0.1:0?tls=off", f"unix:{path}"]
    listeners.close()
    assert not path.exists()


def test_every_address_of_a_name(listeners: Listeners) -> None:
    have(listeners, Listen(":0", reuse_port=True))
    first, second = names(listeners.of_slot(0)), names(listeners.of_slot(1))
    assert first == second
    assert len({name[1] for name in first}) == 1  # type: ignore[index]


def test_what_stays_is_the_same_socket(listeners: Listeners) -> None:
    have(listeners, SHARED, OWN)
    before = [*listeners.of_slot(0), *listeners.own_of_slot(1)]
    dropped = change(listeners, OWN, Listen("127.0.0.1:0", backlog=7), UDP)
    assert dropped == []
    after = listeners.of_slot(0)
    assert {one.sock for one in after} >= {one.sock for one in before}
    assert len(after) == 3


def test_what_is_dropped_stays_open_until_it_is_closed(listeners: Listeners) -> None:
    have(listeners, SHARED, OWN)
    [shared, own] = names(listeners.of_slot(0))
    dropped = change(listeners, OWN)
    assert names(listeners.of_slot(0)) == [own]
    knock(shared)
    close_bound(dropped)  # type: ignore[arg-type]
    with pytest.raises(ConnectionRefusedError):
        knock(shared)
    knock(own)


def test_nothing_is_opened_when_one_cannot_be(listeners: Listeners, tmp_path: Path) -> None:
    have(listeners, SHARED)
    before = names(listeners.of_slot(0))
    new = Listen(f"unix:{tmp_path}/socket")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ImproperlyConfigured, match=f"bind '{address}'"):
            listeners.prepare([SHARED, new, Listen(address)])
    assert not (tmp_path / "socket").exists()
    assert names(listeners.of_slot(0)) == before
    knock(before[0])


def test_what_was_prepared_for_nothing_is_closed(listeners: Listeners, tmp_path: Path) -> None:
    have(listeners, SHARED)
    binds = listeners.prepare([SHARED, Listen(f"unix:{tmp_path}/socket")])
    # The workers that are to be have all of them already.
    assert len(listeners.of_slot(0, binds)) == 2
    assert len(listeners.of_slot(0)) == 1
    listeners.discard(binds)
    assert not (tmp_path / "socket").exists()
    knock(listeners.of_slot(0)[0].sock.getsockname())


def test_an_address_that_several_would_share_must_be_meant_for_that(listeners: Listeners) -> None:
    have(listeners, OWN)
    [(_, port)] = names(listeners.of_slot(0))  # type: ignore[misc]
    listens = [OWN, Listen(f"127.0.0.1:{port}")]
    with pytest.raises(ImproperlyConfigured):
        listeners.prepare(listens)


@linux
@pytest.mark.parametrize("listen", [SHARED, OWN], ids=["shared", "own"])
def test_a_shut_door_lets_out_whoever_is_in(listeners: Listeners, listen: Listen) -> None:
    have(listeners, listen)
    [one] = listeners.of_slot(0)
    name = one.sock.getsockname()
    with socket.create_connection(name, 10) as early:
        listeners.shut_the_door()
        with socket.socket() as late:
            late.setblocking(False)
            assert late.connect_ex(name) == errno.EINPROGRESS
            accepted, _ = one.sock.accept()
            with accepted:
                accepted.sendall(b"welcome")
            assert early.recv(10) == b"welcome"
            one.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.sock.accept()


def test_a_shut_door_of_a_path(listeners: Listeners, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    have(listeners, Listen(f"unix:{path}"))
    listeners.shut_the_door()
    with pytest.raises(OSError):  # not there, or not let in
        knock(str(path), socket.AF_UNIX)


def test_the_door_of_somebody_else_stays_open(listeners: Listeners) -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        have(listeners, Listen(f"fd://{theirs.dup().detach()}"))
        [one] = listeners.of_slot(0)
        assert one.foreign
        listeners.shut_the_door()
        knock(theirs.getsockname())
        listeners.close()
        knock(theirs.getsockname())


def test_datagrams_have_no_door(listeners: Listeners) -> None:
    have(listeners, UDP)
    [one] = listeners.of_slot(0)
    listeners.shut_the_door()
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.sendto(b"hello", one.sock.getsockname())
        one.sock.settimeout(10)
        assert one.sock.recv(10) == b"hello"
