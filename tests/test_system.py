"""What the kernel says of a process, and does for it."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvloop

from pulsar.errors import ImproperlyConfigured
from pulsar.system import (
    enable_subreaper,
    new_event_loop,
    refuse_mixed_installation,
    resident_memory,
    run_delay,
    set_process_title,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that has this")


def python(code: str) -> str:
    """What ``code`` prints in an interpreter of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


@pytest.mark.parametrize("kind", ["auto", "uvloop", "asyncio"])
def test_event_loops(kind: str) -> None:
    loop = new_event_loop(kind)
    assert isinstance(loop, uvloop.Loop) == (kind != "asyncio")
    loop.close()


def test_a_system_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_event_loop()
    assert isinstance(loop, asyncio.BaseEventLoop)
    loop.close()
    with pytest.raises(ImproperlyConfigured, match="uvloop, which is not installed"):
        new_event_loop("uvloop")


def test_files_of_a_namesake_are_refused(tmp_path: Path) -> None:
    refuse_mixed_installation(tmp_path)
    (tmp_path / "schema").mkdir()
    with pytest.raises(ImportError, match="two distributions: pulsar, the socket server, and pul"):
        refuse_mixed_installation(tmp_path)


@linux_only
def test_the_title_of_a_process() -> None:
    pytest.importorskip("setproctitle")
    shown = python(
        "from pathlib import Path; from pulsar.system import set_process_title;"
        "set_process_title('pulsar: worker 3 \N{SNOWMAN}');"
        "print(Path('/proc/self/cmdline').read_text())"
    )
    assert shown.rstrip("\0") == "pulsar: worker 3 \N{SNOWMAN}"


def test_a_title_needs_setproctitle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setproctitle", None)
    set_process_title("in vain")


@linux_only
def test_the_memory_of_this_process() -> None:
    before = resident_memory()
    assert 5_000_000 < before < 5_000_000_000
    block = bytearray(b"x") * 100_000_000
    assert resident_memory() - before > 90_000_000
    del block


def test_memory_that_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert resident_memory() == 0


@linux_only
def test_the_delay_of_a_process_that_gets_no_processor() -> None:
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this kernel does not count it")
    assert run_delay(os.getpid()) >= 0
    busy = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-S", "-c", busy]) for _ in range(2)]
    try:
        deadline = time.monotonic() + 30
        # They share one processor: each waits for half of the time.
        while min(run_delay(process.pid) for process in processes) < 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert run_delay(processes[0].pid) == 0.0


SUBREAPER = """
import os, time
from pulsar.system import enable_subreaper
assert enable_subreaper() is True
results, told = os.pipe()
child = os.fork()
if child == 0:
    middle = os.getpid()
    if os.fork() == 0:
        while os.getppid() == middle:
            time.sleep(0.001)
        os.write(told, str(os.getppid()).encode())
        os._exit(7)
    os._exit(0)
os.waitpid(child, 0)
adopted = os.read(results, 100)
pid, status = os.wait()
print(int(adopted) == os.getpid(), os.waitstatus_to_exitcode(status))
"""


@linux_only
def test_orphans_come_to_a_subreaper() -> None:
    assert python(SUBREAPER) == "True 7"


def test_other_systems_have_no_subreaper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert enable_subreaper() is False
