"""Process trees: starting one on a core, reading its CPU time and memory, ending it.

Owns: everything that is asked of the kernel about somebody else's process (Linux only).
Leaves: which processes to start to ``peers``, what the figures mean to ``figures``.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PROC = Path("/proc")
PR_SET_PDEATHSIG = 1
SYS_PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Cpu:
    """CPU time that a tree has used so far, in nanoseconds.

    ``total`` and ``waited`` (ready to run, but not on a core) are exact. ``user`` and
    ``system`` are sampled by the kernel's tick: only their proportion is used.
    """

    total: int
    user: int
    system: int
    waited: int

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(
            self.total - other.total,
            self.user - other.user,
            self.system - other.system,
            self.waited - other.waited,
        )


@dataclass(frozen=True)
class Memory:
    """Resident memory of a tree in KiB: as is, and with shared pages divided by their users."""

    rss: int
    pss: int


class Tree:
    """A command that was started here, and all of its descendants."""

    def __init__(
        self,
        command: Sequence[str],
        core: int,
        *,
        cwd: Path | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        """Start ``command`` on ``core``, in a session of its own: Ctrl-C reaches only us."""
        with pinned(core):
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def alive(self) -> bool:
        """Whether the command itself still runs."""
        return self.process.poll() is None

    def pids(self) -> list[int]:
        """The command's process and its descendants, as of now."""
        found = [self.process.pid] if self.alive else []
        for pid in found:
            for children in PROC.glob(f"{pid}/task/*/children"):
                with contextlib.suppress(OSError):
                    found.extend(int(child) for child in children.read_text().split())
        return found

    def cpu(self) -> Cpu:
        """The CPU time of the whole tree; exact when the tree is idle."""
        total = user = system = waited = 0
        for pid in self.pids():
            # CPU clocks of another process: see clock_getcpuclockid(3). Unlike the files in
            # /proc they count finished threads, in nanoseconds.
            with contextlib.suppress(OSError):
                both, user_part, exact = (
                    time.clock_gettime_ns((~pid << 3) | which) for which in range(3)
                )
                total += exact
                user += user_part
                system += both - user_part
                waited += sum(_waited(task) for task in PROC.glob(f"{pid}/task/*"))
        return Cpu(total, user, system, waited)

    def settle(self, quiet: float = 0.005, limit: float = 0.5) -> None:
        """Wait until the tree used no CPU for ``quiet`` seconds, at most ``limit`` seconds."""
        until = time.monotonic() + limit
        before = self.cpu().total
        while time.monotonic() < until:
            time.sleep(quiet)
            used = self.cpu().total
            if used == before:
                return
            before = used

    def memory(self) -> Memory:
        """The memory of the whole tree."""
        rss = pss = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in (PROC / f"{pid}/smaps_rollup").read_text().splitlines():
                    key, _, rest = line.partition(":")
                    if key == "Rss":
                        rss += int(rest.split()[0])
                    elif key == "Pss":
                        pss += int(rest.split()[0])
        return Memory(rss, pss)

    def stop(self, patience: float = 3.0) -> None:
        """End the tree: ask, wait ``patience`` seconds, kill, reap."""
        pids = self.pids()
        if self.alive:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        for pid in pids:
            if pid != self.process.pid and self._is_ours(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.alive:
            self.process.kill()
        self.process.wait()

    def _is_ours(self, pid: int) -> bool:
        """Guard against a number that was given to a stranger meanwhile."""
        try:
            return os.getsid(pid) == self.process.pid
        except ProcessLookupError:
            return False


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Run the block on ``core``: what it starts inherits the choice from its first instruction."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class UdpSocket:
    """A UDP socket as the kernel lists it: who holds it, and what it dropped."""

    inode: int
    drops: int


def udp_sockets(port: int) -> list[UdpSocket]:
    """The UDP sockets that are bound to ``port`` and connected to nobody."""
    found = []
    for line in (PROC / "net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) == port and fields[2] == "00000000:0000":
            found.append(UdpSocket(inode=int(fields[9]), drops=int(fields[12])))
    return found


def set_receive_buffers(tree: Tree, port: int, size: int) -> list[int]:
    """Give every UDP socket of ``tree`` on ``port`` the same ``SO_RCVBUF``, from outside.

    ``size`` is what the kernel accounts, in bytes. Returns the sizes as they are then; an empty
    list means that the kernel does not let us reach into that process.
    """
    wanted = {f"socket:[{found.inode}]" for found in udp_sockets(port)}
    sizes = []
    for pid in tree.pids():
        for link in PROC.glob(f"{pid}/fd/*"):
            with contextlib.suppress(OSError):
                if os.readlink(link) in wanted:
                    with _duplicate(pid, int(link.name)) as sock:
                        # The kernel doubles what it is asked for.
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // 2)
                        sizes.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
    return sizes


def _duplicate(pid: int, descriptor: int) -> socket.socket:
    handle = os.pidfd_open(pid)
    try:
        ours = _libc.syscall(SYS_PIDFD_GETFD, handle, descriptor, 0)
    finally:
        os.close(handle)
    if ours < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return socket.socket(fileno=ours)


def _waited(task: Path) -> int:
    with contextlib.suppress(OSError):
        return int((task / "schedstat").read_text().split()[1])
    return 0


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
