"""What a test may not leave behind, and how that is noticed.

Owns: a picture of this process (threads, child processes, descriptors,
pending tasks, files in the working directory), the difference of two, and the
end of leaked processes.
Leaves: when to look, and which tests are excused, to plugin.py.

Descriptors and processes are read from /proc, so they are checked on Linux
only. A picture takes a fraction of a millisecond; the garbage collector runs
only when a difference was found, because it may be what closes it.
"""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

# How long, in seconds, what is about to end (a joined executor's thread, a
# worker that lost its parent) may take to do so.
PATIENCE = 2.0

# Opened once per process by whoever needs it first.
GLOBAL_DESCRIPTORS = {"/dev/urandom"}

# Left in the working directory by the tools around a test run.
TOOLS_FILES = {"__pycache__", "build", "dist", "site"}

PR_SET_CHILD_SUBREAPER = 36

Task = asyncio.Task[Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there was at one moment."""

    threads: frozenset[threading.Thread]
    children: frozenset[int]
    descriptors: dict[int, str]
    tasks: frozenset[Task]
    directory: str
    files: frozenset[str]


def prepare() -> None:
    """Let later pictures be exact: call once, before the first of them."""
    # Orphaned grandchildren become children, so that they are seen.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # libuv opens a pipe with the first loop and keeps it for good.
    uvloop.new_event_loop().close()


def take() -> Snapshot:
    """Return a picture of this process now."""
    return Snapshot(
        threads=frozenset(threading.enumerate()),
        children=frozenset(_children()),
        descriptors=_descriptors(),
        tasks=frozenset(_pending_tasks()),
        directory=os.getcwd(),
        files=frozenset(os.listdir()),
    )


def since(before: Snapshot, patience: float) -> list[str]:
    """Return a sentence for each thing that is here now and was not ``before``.

    What ends within ``patience`` seconds is no leak. Leaked processes are
    killed, and the working directory is set back.
    """
    after = take()
    # Held from here on: a pending task that the collector destroys is a leak all the same.
    tasks = after.tasks - before.tasks
    if not _differ(before, after):
        return []
    gc.collect()
    deadline = time.monotonic() + patience
    while _differ(before, after := take()) and time.monotonic() < deadline:
        _reap(after.children - before.children)
        time.sleep(0.01)
    found = [
        *(f"thread {thread.name!r}" for thread in after.threads - before.threads),
        *(f"process {pid}: {_command(pid)}" for pid in after.children - before.children),
        *(f"descriptor {fd}: {_target(fd, after)}" for fd in _opened(before, after)),
        *(f"pending task {task!r}" for task in tasks if not task.done()),
        *(f"file {name!r} in {after.directory}" for name in _created(before, after)),
    ]
    if after.directory != before.directory:
        found.append(f"working directory {after.directory}, which was {before.directory}")
        os.chdir(before.directory)
    kill_children(before)
    return found


def kill_children(before: Snapshot) -> None:
    """Kill and reap the processes that were not there ``before``, and theirs."""
    while pids := set(_children()) - before.children:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass  # reaped by a thread of asyncio meanwhile


def _differ(before: Snapshot, after: Snapshot) -> bool:
    return (
        not after.threads <= before.threads
        or not after.children <= before.children
        or not after.tasks <= before.tasks
        or after.directory != before.directory
        or any(_opened(before, after))
        or any(_created(before, after))
    )


def _opened(before: Snapshot, after: Snapshot) -> Iterator[int]:
    for descriptor, target in after.descriptors.items():
        if before.descriptors.get(descriptor) != target and target not in GLOBAL_DESCRIPTORS:
            yield descriptor


def _created(before: Snapshot, after: Snapshot) -> Iterator[str]:
    if after.directory == before.directory:
        for name in after.files - before.files:
            if not name.startswith(".") and name not in TOOLS_FILES:
                yield name


def _children() -> Iterator[int]:
    for task in _listed("/proc/self/task"):
        try:
            yield from map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
        except FileNotFoundError:
            pass  # the thread has ended meanwhile


def _reap(pids: frozenset[int]) -> None:
    """Take the exit status of those that are dead: most are orphans that came to us."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass


def _command(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return "ended meanwhile"
    return command.replace(b"\0", b" ").decode(errors="replace").strip()


def _descriptors() -> dict[int, str]:
    targets = {}
    own_listing = f"/proc/{os.getpid()}/fd"
    for name in _listed("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target != own_listing:
            targets[int(name)] = target
    return targets


def _target(descriptor: int, picture: Snapshot) -> str:
    """Describe a descriptor; a socket by its addresses, which name the culprit best."""
    target = picture.descriptors[descriptor]
    if target.startswith("socket:"):
        try:
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                return repr(sock)
        except OSError:
            pass  # closed meanwhile by another thread
    return target


def _pending_tasks() -> Iterator[Task]:
    """Find the tasks of all loops; asyncio.all_tasks() knows one loop at a time."""
    while True:
        try:
            if sys.version_info >= (3, 14):
                # Kept in lists of C structures: only the collector knows them all.
                tasks = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task)]
            elif sys.version_info >= (3, 12):
                tasks = [*asyncio.tasks._scheduled_tasks, *asyncio.tasks._eager_tasks]
            else:
                tasks = list(asyncio.tasks._all_tasks)  # type: ignore[attr-defined]
        except RuntimeError:
            continue  # another thread's loop started a task meanwhile
        return (task for task in tasks if not task.done())


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []  # no /proc here
