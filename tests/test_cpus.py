"""The number of processors: the machine's own, and control groups laid out in a directory."""

import math
import os
import sys
from pathlib import Path

import pytest

from pulsar import cpus
from pulsar.cpus import available_cpus, parse_cpu_max, parse_groups, with_parents

MANY = 64


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with many processors, all of them ours."""
    monkeypatch.setattr(cpus, "_affinity", lambda: MANY)


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu,cpuacct"
GROUP = "proc/self/cgroup"


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, MANY),
        ({GROUP: "0::/\n"}, MANY),
        ({GROUP: "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, MANY),
        ({GROUP: "0::/\n", f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ({GROUP: "0::/\n", f"{V2}/cpu.max": "150000 100000\n"}, 2),
        ({GROUP: "0::/\n", f"{V2}/cpu.max": "20000 100000\n"}, 1),
        ({GROUP: "0::/\n", f"{V2}/cpu.max": "99000000 100000\n"}, MANY),
        ({f"{V2}/cpu.max": "300000 100000\n"}, 3),
        ({GROUP: "0::/a/b\n", f"{V2}/a/b/cpu.max": "300000 100000\n"}, 3),
        (
            {
                GROUP: "0::/a/b\n",
                f"{V2}/a/b/cpu.max": "max 100000\n",
                f"{V2}/a/cpu.max": "400000 100000\n",
                f"{V2}/cpu.max": "500000 100000\n",
                f"{V2}/other/cpu.max": "100000 100000\n",
            },
            4,
        ),
        ({GROUP: "0::/docker/abc\n", f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ({GROUP: "0::/../other\n", f"{V2}/cpu.max": "200000 100000\n"}, MANY),
        (
            {
                GROUP: "4:memory:/m\n3:cpu,cpuacct:/a\n1:name=systemd:/a\n0::/\n",
                f"{V1}/a/cpu.cfs_quota_us": "250000\n",
                f"{V1}/a/cpu.cfs_period_us": "100000\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                GROUP: "2:cpuset:/s\n1:cpu:/docker/abc\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            },
            1,
        ),
        ({GROUP: "1:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n"}, MANY),
        ({GROUP: "0::/\n", f"{V2}/unified/cpu.max": "700000 100000\n"}, 7),
        ({GROUP: "\0rubbish\n:::\n0:\n", f"{V2}/cpu.max": "\xff\n"}, MANY),
    ],
)
def test_control_groups(tmp_path: Path, files: dict[str, str], count: int) -> None:
    assert available_cpus(lay_out(tmp_path, files)) == count


def test_affinity_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {GROUP: "0::/\n", f"{V2}/cpu.max": "800000 100000\n"})
    monkeypatch.setattr(cpus, "_affinity", lambda: 3)
    assert available_cpus(tmp_path) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_this_process() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= available_cpus() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python answers by itself")
def test_a_system_without_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_cpus(tmp_path) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus(tmp_path) == 1


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("", ("/", "/")),
        ("0::/user.slice/a.scope\n", ("/user.slice/a.scope", "/")),
        ("0::/with:colon\n", ("/with:colon", "/")),
        ("5:cpuacct,cpu:/x\n0::/y\n", ("/y", "/x")),
        ("5:cpuset:/x\n4:cpuacct:/z\n", ("/", "/")),
    ],
)
def test_the_groups_of_a_process(text: str, groups: tuple[str, str]) -> None:
    assert parse_groups(text) == groups


@pytest.mark.parametrize(
    ("path", "directories"),
    [("/", ["."]), ("/a", ["a", "."]), ("/a/b", ["a/b", "a", "."]), ("/../x", []), ("", ["."])],
)
def test_the_directories_of_a_group(path: str, directories: list[str]) -> None:
    assert list(map(str, with_parents(path))) == directories


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max 100000\n", math.inf),
        ("100000 100000\n", 1.0),
        ("50000 100000\n", 0.5),
        ("-1 100000", math.inf),
        ("100000 0", math.inf),
        ("100000", math.inf),
        ("", math.inf),
        ("a b", math.inf),
    ],
)
def test_a_quota(text: str, limit: float) -> None:
    assert parse_cpu_max(text) == limit
