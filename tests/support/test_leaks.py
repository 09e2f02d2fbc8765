"""Every kind of leak is caught, named, and told from what was there before."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support import leaks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")

ROOT = Path(__file__).parents[2]
NO_PATIENCE = 0.0


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def test_nothing_is_found_where_nothing_was_left() -> None:
    before = leaks.take()
    socket.socket().close()
    subprocess.run(["true"], check=True)
    asyncio.run(asyncio.sleep(0))
    assert leaks.since(before, leaks.PATIENCE) == []


def test_a_picture_is_cheap() -> None:
    rounds = []
    for _ in range(20):
        started = time.perf_counter()
        leaks.since(leaks.take(), leaks.PATIENCE)
        rounds.append(time.perf_counter() - started)
    assert min(rounds) < 0.02  # it would be a hundred times that if it waited


def test_a_thread_is_named() -> None:
    stop = threading.Event()
    before = leaks.take()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    try:
        assert only(leaks.since(before, NO_PATIENCE)) == "thread 'forgotten'"
    finally:
        stop.set()
        thread.join()


def test_a_thread_that_is_about_to_end_is_no_leak() -> None:
    stop = threading.Event()
    before = leaks.take()
    threading.Thread(target=stop.wait).start()
    threading.Timer(0.02, stop.set).start()
    assert leaks.since(before, leaks.PATIENCE) == []


def test_a_child_process_is_named_and_killed() -> None:
    before = leaks.take()
    child = subprocess.Popen(["sleep", "60"])
    assert only(leaks.since(before, NO_PATIENCE)) == f"process {child.pid}: sleep 60"
    assert not Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_an_orphaned_grandchild_is_a_leak() -> None:
    before = leaks.take()
    script = "sleep 60 >/dev/null 2>&1 & echo $!"
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    pid = int(shell.stdout)
    assert only(leaks.since(before, NO_PATIENCE)) == f"process {pid}: sleep 60"
    assert not Path(f"/proc/{pid}").exists()


def test_the_children_of_a_leaked_process_are_killed_with_it() -> None:
    before = leaks.take()
    shell = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    )
    assert shell.stdout is not None
    with shell.stdout:
        grandchild = int(shell.stdout.readline())
    leaks.kill_children(before)
    assert not Path(f"/proc/{grandchild}").exists()
    shell.wait()


def test_an_orphan_that_is_dead_is_reaped() -> None:
    before = leaks.take()
    subprocess.run(["sh", "-c", "sleep 0.01 &"], check=True)
    assert leaks.since(before, leaks.PATIENCE) == []
    assert leaks.take().children == before.children


def test_a_socket_is_named_by_its_address() -> None:
    before = leaks.take()
    with socket.create_server(("127.0.0.1", 0)):
        found = only(leaks.since(before, NO_PATIENCE))
    assert found.startswith("descriptor ")
    assert re.search(r"laddr=\('127\.0\.0\.1', \d+\)", found)


def test_a_file_that_is_open_is_named_by_its_path(tmp_path: Path) -> None:
    before = leaks.take()
    with (tmp_path / "open.txt").open("w") as file:
        number = file.fileno()
        found = only(leaks.since(before, NO_PATIENCE))
    assert found == f"descriptor {number}: {tmp_path}/open.txt"


def test_a_descriptor_that_took_the_place_of_another_is_a_leak(tmp_path: Path) -> None:
    first = os.open(tmp_path, os.O_RDONLY)
    before = leaks.take()
    os.close(first)
    second = os.open(__file__, os.O_RDONLY)
    try:
        assert only(leaks.since(before, NO_PATIENCE)) == f"descriptor {second}: {__file__}"
    finally:
        os.close(second)


def test_what_the_collector_closes_is_no_leak(tmp_path: Path) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self
            self.descriptor = os.open(tmp_path, os.O_RDONLY)

        def __del__(self) -> None:
            os.close(self.descriptor)

    before = leaks.take()
    Cycle()
    assert leaks.since(before, leaks.PATIENCE) == []


def test_a_pending_task_is_named_with_its_coroutine() -> None:
    async def never_awaited() -> None:
        await asyncio.sleep(60)

    before = leaks.take()
    loop = asyncio.new_event_loop()
    task = loop.create_task(never_awaited())
    loop.run_until_complete(asyncio.sleep(0))
    found = [line for line in leaks.since(before, NO_PATIENCE) if line.startswith("pending task")]
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    assert "never_awaited" in only(found)


def test_a_file_in_the_working_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = leaks.take()
    Path("server.pid").touch()
    Path(".coverage.1").touch()
    assert only(leaks.since(before, NO_PATIENCE)) == f"file 'server.pid' in {tmp_path}"


def test_a_changed_working_directory_is_named_and_set_back(tmp_path: Path) -> None:
    before = leaks.take()
    os.chdir(tmp_path)
    assert str(tmp_path) in only(leaks.since(before, NO_PATIENCE))
    assert os.getcwd() == before.directory


LEAKY = """
import asyncio, socket
from tests.support import leaks, loops

leaks.PATIENCE = 0.0
left = []

def test_descriptor():
    left.append(socket.socket())

def test_clean_after_it():
    pass

def test_that_fails_is_not_blamed_twice():
    left.append(socket.socket())
    assert False

def test_late_error():
    async def main():
        left.append(asyncio.get_running_loop())
    loops.run(main())
    left.pop().call_exception_handler({"message": "too late"})
"""


def test_the_plugin_fails_the_test_that_leaked(tmp_path: Path) -> None:
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.plugin", "-p", "no:randomly"]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-rA", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    summary = re.findall(r"^(ERROR|FAILED) test_leaky\.py::(\w+)", result.stdout, re.MULTILINE)
    assert sorted(summary) == [
        ("ERROR", "test_descriptor"),
        ("ERROR", "test_late_error"),
        ("FAILED", "test_that_fails_is_not_blamed_twice"),
    ]
    assert re.search(r"the test left behind:\n- descriptor \d+: <socket\.socket", result.stdout)
    assert "the event loop reports: too late" in result.stdout
