"""systemd's notifications, received by a socket like systemd's."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulsar.actors.notify import Notifier

linux_only = pytest.mark.skipif(
    not hasattr(socket, "SO_PASSCRED"), reason="abstract names are Linux's"
)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


def notifier(manager: socket.socket, **variables: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname(), **variables})


def received(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_what_is_told(manager: socket.socket) -> None:
    notify = notifier(manager)
    before = time.monotonic_ns() // 1000
    notify.ready("serves on 127.0.0.1:8060")
    notify.reloading()
    notify.ready()
    notify.status("two\nlines\tand \N{SNOWMAN} \ud800")
    notify.watchdog()
    notify.stopping("drains")
    assert received(manager) == ["READY=1", "STATUS=serves on 127.0.0.1:8060"]
    reloading, moment = received(manager)
    assert reloading == "RELOADING=1"
    assert moment.startswith("MONOTONIC_USEC=")
    assert before <= int(moment.partition("=")[2]) <= time.monotonic_ns() // 1000
    assert received(manager) == ["READY=1"]
    assert received(manager) == ["STATUS=two lines and \N{SNOWMAN} ?"]
    assert received(manager) == ["WATCHDOG=1"]
    assert received(manager) == ["STOPPING=1", "STATUS=drains"]


@linux_only
def test_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the system chooses an abstract name
        manager.settimeout(30)
        name = manager.getsockname()
        Notifier({"NOTIFY_SOCKET": "@" + name[1:].decode()}).ready()
        assert received(manager) == ["READY=1"]


def test_who_is_told_apart_by_the_process(manager: socket.socket) -> None:
    """A manager believes the main process only: messages must be its own, not a helper's."""
    if not hasattr(socket, "SO_PASSCRED"):
        pytest.skip("credentials of messages are Linux's")
    manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    notifier(manager).ready()
    _, [(_, _, credentials)], _, _ = manager.recvmsg(4096, 100)
    assert int.from_bytes(credentials[:4], "little") == os.getpid()


def test_children_do_not_inherit_it(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notify = Notifier()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
    assert notify.watchdog_interval == 1.5
    notify.ready()
    assert received(manager) == ["READY=1"]


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
    ],
)
def test_the_watchdog(
    manager: socket.socket, variables: dict[str, str], interval: float | None
) -> None:
    assert notifier(manager, **variables).watchdog_interval == interval


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    notify = Notifier({"WATCHDOG_USEC": "30000000"})
    assert notify.watchdog_interval is None
    notify.ready("well")
    notify.watchdog()
    notify.stopping()


def test_a_manager_that_is_gone_is_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pulsar")
    notify = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notify.ready()
    notify.watchdog()
    [record] = caplog.records
    assert record.levelname == "DEBUG"
    assert record.getMessage().endswith("told anything: [Errno 2] No such file or directory")


def test_a_manager_that_does_not_listen_holds_up_nobody(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pulsar")
    notify = notifier(manager)
    while not caplog.records:
        notify.watchdog()
    assert "timed out" in caplog.messages[0]


@pytest.mark.parametrize("where", ["vsock:2:1234", "relative/path", "unix:/x", "@" + "x" * 200])
def test_an_address_that_cannot_be_used(where: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pulsar")
    Notifier({"NOTIFY_SOCKET": where, "WATCHDOG_USEC": "1000"}).ready()
    assert len(caplog.records) == 1
