"""What pulsar asks of the machine and the interpreter that it runs on.

Owns: the choice of an event loop, the check for a foreign ``pulsar``, and what the
kernel says of a process or does for it.
Leaves: making and ending processes to ``actors``, sockets to ``sockets``.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pulsar.errors import ImproperlyConfigured

__all__ = [
    "enable_subreaper",
    "end_with_parent",
    "import_event_loop",
    "new_event_loop",
    "refuse_mixed_installation",
    "resident_memory",
    "run_delay",
    "set_process_title",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# Files of Apache Pulsar's client, which is also imported as ``pulsar``.
_APACHE_FILES = ("tableview.py", "schema", "functions")


def new_event_loop(kind: str = "auto") -> asyncio.AbstractEventLoop:
    """A new event loop: ``uvloop``, ``asyncio``, or ``auto``, uvloop where it is installed.

    Raises ``ImproperlyConfigured`` when uvloop is asked for and not installed.
    """
    loop: asyncio.AbstractEventLoop = import_event_loop(kind).new_event_loop()
    return loop


def import_event_loop(kind: str = "auto") -> Any:
    """The module that ``new_event_loop`` takes a loop from, imported.

    Raises ``ImproperlyConfigured`` as that does.
    """
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError as exc:
            if kind == "uvloop":
                raise ImproperlyConfigured(
                    "event_loop is uvloop, which is not installed: install it, or choose auto"
                ) from exc
        else:
            return uvloop
    return asyncio


def refuse_mixed_installation(package: Path) -> None:
    """Refuse to be imported from a folder that is shared with Apache Pulsar's client.

    Both are imported as ``pulsar``; installed into one environment, their files mix.
    Raises ``ImportError``.
    """
    for name in _APACHE_FILES:
        if (package / name).exists():
            raise ImportError(
                f"{package} holds files of two distributions: pulsar, the socket server, and "
                "pulsar-client, the client of Apache Pulsar, which is imported by the same name; "
                "install them into separate virtual environments"
            )


def set_process_title(text: str) -> None:
    """Show ``text`` as this process in ``ps`` and ``top``, where setproctitle is installed."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(text)


def resident_memory() -> int:
    """Bytes of memory that this process has in use, shared ones included; 0: unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_delay(pid: int) -> float:
    """Seconds that the main thread of ``pid`` was ready to run and got no processor.

    Counted since its start. 0.0: unknown, or there is no such process.
    """
    try:
        nanoseconds = int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return nanoseconds / 1e9


def end_with_parent(yes: bool) -> None:
    """Have this process killed when its parent ends, or no more. Does nothing off Linux."""
    if sys.platform == "linux":
        parent = os.getppid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if yes else 0)
        if yes and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)  # it has ended just now


def enable_subreaper() -> bool:
    """Become the parent of descendants whose own parent dies; False: not on this system."""
    if sys.platform != "linux":
        return False
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> bool:
    import ctypes

    return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
