"""How many processors this process may use.

Owns: ``available_cpus``: the scheduler's affinity and the limits of control groups.
Leaves: what is made of the number to the settings.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["available_cpus"]

# Where the hierarchies of control groups are mounted: the one of version 2, alone or
# beside those of version 1, and the two usual names of version 1's cpu hierarchy.
_V2_MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_V1_MOUNTS = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")


def available_cpus(root: Path = Path("/")) -> int:
    """How many processors this process may keep busy, at least 1.

    The least of: the processors it may run on, and the processor time that its
    control group and those above it are allowed, rounded up.

    :param root: where ``proc`` and ``sys`` are
    """
    return max(1, math.ceil(min([_affinity(), *_quotas(root)])))


def _affinity() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The limits of the groups, in processors."""
    version2, version1 = parse_groups(_read(root / "proc/self/cgroup"))
    for mount in _V2_MOUNTS:
        for directory in with_parents(version2):
            yield parse_cpu_max(_read(root / mount / directory / "cpu.max"))
    for mount in _V1_MOUNTS:
        for directory in with_parents(version1):
            group = root / mount / directory
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
            yield parse_cpu_max(f"{quota} {period}")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def parse_groups(text: str) -> tuple[str, str]:
    """A process's groups, of version 2 and of version 1's cpu hierarchy; by default the root.

    :param text: the content of /proc/self/cgroup
    """
    version2 = version1 = "/"
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version2 = path
        elif "cpu" in controllers.split(","):
            version1 = path
    return version2, version1


def with_parents(path: str) -> list[PurePosixPath]:
    """A group's directory and those above it, relative to the mount, which comes last.

    The path may be that of the host, while a container sees its own group as the
    mount; directories that are not there limit nothing.
    """
    # Of a group outside of the container's own, only ".." is to be seen.
    relative = PurePosixPath(path.lstrip("/"))
    return [] if ".." in relative.parts else [relative, *relative.parents]


def parse_cpu_max(text: str) -> float:
    """The number of processors that a quota and its period, both in microseconds, allow.

    Infinity for "max", for -1, and for what cannot be understood.
    """
    match text.split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
            return int(quota) / int(period)
    return math.inf
