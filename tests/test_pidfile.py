"""The pid file: written whole, refused while its process lives, replaced when it is stale."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pulsar.errors import ImproperlyConfigured
from pulsar.pidfile import PidFile
from tests.support.privileges import unprivileged

# Under xdist a test process has a thread; the children of these tests touch nothing of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulsar.pid"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until the test ends it."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def is_ours(path: Path) -> bool:
    return path.read_text() == f"{os.getpid()}\n"


def names(path: Path) -> list[str]:
    return [found.name for found in path.parent.iterdir()]


def test_it_comes_and_goes(path: Path) -> None:
    file = PidFile(str(path))
    umask = os.umask(0o077)
    try:
        file.create()
    finally:
        os.umask(umask)
    assert is_ours(path)
    assert path.stat().st_mode & 0o7777 == 0o644
    assert path.stat().st_nlink == 1
    assert names(path) == ["pulsar.pid"]
    assert repr(file) == f"<PidFile {path}: {os.getpid()}>"
    file.remove()
    assert names(path) == []
    assert repr(file) == f"<PidFile {path}: not ours>"
    file.remove()


def dead() -> int:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        pass
    return process.pid


STALE = {
    "empty": lambda: b"",
    "rubbish": lambda: b"pid\n",
    "binary": lambda: os.urandom(100) + b"x",
    "two numbers": lambda: b"1 2",
    "negative": lambda: b"-1",
    "nought": lambda: b"0",
    "too great a number": lambda: b"9" * 30,
    "a process that is gone": lambda: b"%d\n" % dead(),
    "this very process, as after the restart of a container": lambda: b"%d\n" % os.getpid(),
}


@pytest.mark.parametrize("case", STALE)
def test_a_stale_file_is_replaced(path: Path, case: str) -> None:
    path.write_bytes(STALE[case]())
    path.chmod(0o600)
    file = PidFile(path)
    file.create()
    assert is_ours(path)
    assert path.stat().st_mode & 0o7777 == 0o644
    assert names(path) == ["pulsar.pid"]
    file.remove()
    assert names(path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells zombies")
def test_a_zombie_does_not_live(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    path.write_text(str(process.pid))
    PidFile(path).create()
    assert is_ours(path)
    process.wait()


def test_a_live_process_is_refused(path: Path, sleeper: Any) -> None:
    path.write_text(f" {sleeper.pid}\n")
    file = PidFile(path)
    sentence = f"the pid file {path} belongs to process {sleeper.pid}, which is running: stop that"
    with pytest.raises(ImproperlyConfigured, match=re.escape(sentence)):
        file.create()
    file.remove()
    assert path.read_text() == f" {sleeper.pid}\n"
    assert names(path) == ["pulsar.pid"]
    sleeper.kill()
    sleeper.wait()
    file.create()
    assert is_ours(path)


def test_a_live_process_of_another_user_is_refused(
    path: Path, sleeper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    path.write_text(str(sleeper.pid))
    monkeypatch.setattr(os, "kill", kill)
    with pytest.raises(ImproperlyConfigured, match=f"belongs to process {sleeper.pid}, which"):
        PidFile(path).create()
    monkeypatch.undo()


def test_it_is_removed_only_while_it_is_ours(path: Path) -> None:
    file = PidFile(path)
    file.create()
    path.write_text("1\n")
    file.remove()
    assert path.read_text() == "1\n"
    path.unlink()
    file.create()
    path.unlink()
    file.remove()


def test_a_child_leaves_it(path: Path) -> None:
    file = PidFile(path)
    file.create()
    pid = os.fork()
    if pid == 0:
        try:
            file.remove()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert is_ours(path)


def put_a_directory(path: Path) -> str:
    path.mkdir()
    return "something else than a file is there"


def put_a_link(path: Path) -> str:
    path.symlink_to("nowhere")
    return "something else than a file is there"


def put_a_pipe(path: Path) -> str:
    os.mkfifo(path)
    return "something else than a file is there"


@pytest.mark.parametrize("put", [put_a_directory, put_a_link, put_a_pipe])
def test_what_is_no_file_is_refused(path: Path, put: Any) -> None:
    why = put(path)
    with pytest.raises(ImproperlyConfigured, match=f"cannot write the pid file {path}: {why}"):
        PidFile(path).create()
    assert names(path) == ["pulsar.pid"]


def test_where_it_cannot_be_written(path: Path) -> None:
    missing = path.parent / "run" / "pulsar.pid"
    with pytest.raises(ImproperlyConfigured, match=f"directory {missing.parent} does not exist; "):
        PidFile(missing).create()
    path.write_text("")
    with pytest.raises(ImproperlyConfigured, match=f"{path}/x: Not a directory"):
        PidFile(path / "x").create()
    with (
        unprivileged(),
        pytest.raises(ImproperlyConfigured, match=r"file /pulsar\.pid: Permission denied"),
    ):
        PidFile("/pulsar.pid").create()


def test_a_file_that_somebody_locks_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulsar.pidfile._ATTEMPTS", 3)
    path.write_text("")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ImproperlyConfigured, match="another process has locked it"):
            PidFile(path).create()
    assert names(path) == ["pulsar.pid"]


@pytest.mark.parametrize("stale", [False, True])
def test_a_file_system_without_links_and_locks(
    path: Path, stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(Path, "hardlink_to", cannot)
    monkeypatch.setattr(fcntl, "flock", cannot)
    if stale:
        path.write_text("")
    PidFile(path).create()
    assert is_ours(path)
    assert names(path) == ["pulsar.pid"]


def contender(path: Path, start: int, told: int) -> int:
    """A process that creates the file when ``start`` ends, says how that went, and lives on."""
    pid = os.fork()
    if pid == 0:
        try:
            os.read(start, 1)
            try:
                PidFile(path).create()
                os.write(told, b"created\n")
            except Exception as exc:
                os.write(told, f"{exc!r}\n".encode())
            signal.pause()
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_at_once_one_succeeds(path: Path, stale: bool) -> None:
    for _ in range(5):
        path.unlink(missing_ok=True)
        if stale:
            path.write_text("stale")
        start, go = os.pipe()
        results, told = os.pipe()
        pids = [contender(path, start, told) for _ in range(6)]
        try:
            os.write(go, b"." * len(pids))
            with os.fdopen(results) as file:
                lines = [file.readline().strip() for _ in pids]
            owner = path.read_text().strip()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            for descriptor in (start, go, told):
                os.close(descriptor)
        refused = [line for line in lines if f" belongs to process {owner}, " in line]
        assert sorted({*lines} - {*refused}) == ["created"]
        assert len(refused) == len(pids) - 1


def test_a_stale_file_that_another_server_replaces_first(
    path: Path, sleeper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("stale")

    def overtaken(file: Any, how: int) -> None:
        monkeypatch.undo()
        path.unlink()
        path.write_text(str(sleeper.pid))

    monkeypatch.setattr(fcntl, "flock", overtaken)
    with pytest.raises(ImproperlyConfigured, match=f"belongs to process {sleeper.pid}, which"):
        PidFile(path).create()
    assert path.read_text() == str(sleeper.pid)


def test_nobody_sees_half_a_file(path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                file = PidFile(path)
                file.create()
                file.remove()
        finally:
            os._exit(1)
    seen = set()
    deadline = time.monotonic() + 30
    for _ in range(300):
        while time.monotonic() < deadline:
            try:
                seen.add(path.read_text())
                break
            except FileNotFoundError:
                pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert seen == {f"{pid}\n"}
