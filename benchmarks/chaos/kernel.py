"""What the kernel says about processes that are not ours to ask (Linux only).

Owns: reading /proc: who descends from whom, descriptors, memory, connections.
Leaves: what ought to be there to whoever asks.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
PR_SET_CHILD_SUBREAPER = 36
ESTABLISHED = "01"  # of TCP
CONNECTED = "03"  # of Unix sockets


def become_subreaper() -> None:
    """Let orphans among our descendants become our children, so that they are seen."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """The children of ``pid``; none when it does not exist."""
    found: list[int] = []
    for path in PROC.glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            found.extend(map(int, path.read_text().split()))
    return found


def descendants(pid: int) -> list[int]:
    """The children of ``pid``, their children, and so on."""
    found = children(pid)
    for child in found:
        found.extend(children(child))
    return found


def state(pid: int) -> str:
    """One letter (R, S, D, T, Z, ...); empty when ``pid`` does not exist."""
    with contextlib.suppress(OSError, IndexError):
        # The name before it may hold anything, parentheses included.
        return (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def is_running(pid: int) -> bool:
    """Whether ``pid`` exists and is no zombie."""
    return state(pid) not in ("", "Z", "X")


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of ``pid``, and what each of them is."""
    found: dict[int, str] = {}
    for link in PROC.glob(f"{pid}/fd/*"):
        with contextlib.suppress(OSError):
            found[int(link.name)] = os.readlink(link)
    return found


def resident(pid: int) -> int:
    """The resident memory of ``pid`` in bytes; 0 when it does not exist."""
    with contextlib.suppress(OSError):
        for line in (PROC / f"{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def starved(pid: int) -> float:
    """For how many milliseconds ``pid`` has been ready to run and had no core."""
    with contextlib.suppress(OSError, IndexError):
        return int((PROC / f"{pid}/schedstat").read_text().split()[1]) / 1e6
    return 0.0


def command(pid: int) -> str:
    """The command line of ``pid``, or what is left of it."""
    with contextlib.suppress(OSError):
        text = (PROC / f"{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return text.strip() or f"({(PROC / f'{pid}/comm').read_text().strip()})"
    return "ended"


def shared_memory(pid: int) -> set[str]:
    """The files for shared memory that ``pid`` has mapped."""
    with contextlib.suppress(OSError):
        lines = (PROC / f"{pid}/maps").read_text().splitlines()
        return {line.split(maxsplit=5)[5] for line in lines if " /dev/shm/" in line}
    return set()


def established(port: int = 0, path: str = "") -> set[str]:
    """The server's ends of the connections to ``port`` or ``path``, as ``descriptors`` has them."""
    rows = _unix_connections(path) if path else _tcp_connections(port)
    return {f"socket:[{inode}]" for inode in rows if inode != "0"}


def _tcp_connections(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _unix_connections(path: str) -> Iterator[str]:
    for line in (PROC / "net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[5] == CONNECTED and fields[7] == path:
            yield fields[6]
