"""Keeping what was measured: the results files, with what is needed to judge them later.

Owns: the file's name and shape, and the description of the machine.
Leaves: the figures to ``figures``.
"""

import datetime as dt
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .peers import HERE

RESULTS = HERE / "results"

_PACKAGES = ("uvloop", "pulsar", "twisted", "trio", "httptools", "granian", "uvicorn", "gunicorn")
_PACKAGES += ("bjoern", "fastwsgi", "uwsgi")


def save(scenario: str, arguments: Mapping[str, Any], outcome: Mapping[str, Any]) -> Path:
    """Write ``outcome`` as today's result of ``scenario``; replaces an earlier one of today."""
    now = dt.datetime.now(dt.UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%d}-{scenario}.json"
    content = {
        "scenario": scenario,
        "date": now.isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "arguments": dict(arguments),
        **outcome,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def versions() -> dict[str, str | None]:
    """What ran: the interpreter, the libraries, and this project's revision."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: _version(name) for name in _PACKAGES},
        "revision": _revision(),
    }


def machine() -> dict[str, Any]:
    """Where it ran, and how busy the machine was before."""
    return {
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_before": [round(part, 2) for part in os.getloadavg()],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
