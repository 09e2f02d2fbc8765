"""Make or complete a virtual environment for this repository; print its Python.

Owns: when an environment is good as it is, and what is installed into it.
Leaves: the choice of an interpreter to ``scripts/environment``, which runs
this file with the one that it found.

A stamp inside the environment says what was installed from which
declarations. While it matches, nothing is installed and no network is needed.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STAMP = "pulsar-environment.json"


def main(venv: Path, groups: set[str]) -> Path:
    """Return the Python of ``venv``, in which the package and ``groups`` are installed."""
    python = venv / "bin" / "python"
    with (ROOT / "pyproject.toml").open("rb") as pyproject:
        declared = tomllib.load(pyproject)
        if unknown := groups - declared["dependency-groups"].keys():
            known = ", ".join(declared["dependency-groups"])
            sys.exit(f"pyproject.toml has no dependency group {min(unknown)!r}, but {known}.")
        fingerprint = fingerprint_of(declared)
        if not missing(venv, groups, fingerprint):
            return python
        wait_for_turn(pyproject.fileno())
        # Whoever had the turn before may have done the work.
        if not missing(venv, groups, fingerprint):
            return python
        uv = shutil.which("uv")
        if not usable(python, pip=uv is None):
            say(f"making {venv.name} with Python {platform.python_version()}")
            create(venv, pip=uv is None)
        groups |= installed_groups(venv)
        (venv / STAMP).unlink(missing_ok=True)
        say(f"installing into {venv.name}: {', '.join(['pulsar', *sorted(groups)])}")
        install(python, requirements(declared, groups), uv)
        stamp = {"fingerprint": fingerprint, "groups": sorted(groups)}
        (venv / STAMP).write_text(json.dumps(stamp))
    return python


def fingerprint_of(declared: dict[str, Any]) -> str:
    """Hash what an installation depends on; settings of tools are no part of it."""
    relevant = [
        str(ROOT),  # an editable installation points here
        declared["build-system"],
        declared["project"],
        declared["dependency-groups"],
        declared["tool"]["hatch"],
    ]
    return hashlib.sha256(json.dumps(relevant).encode()).hexdigest()


def missing(venv: Path, groups: set[str], fingerprint: str) -> bool:
    stamp = read_stamp(venv)
    same_python = usable(venv / "bin" / "python", pip=False)
    return (
        not same_python
        or stamp.get("fingerprint") != fingerprint
        or not groups <= set(stamp["groups"])
    )


def installed_groups(venv: Path) -> set[str]:
    return set(read_stamp(venv).get("groups", ()))


def read_stamp(venv: Path) -> dict[str, Any]:
    try:
        stamp: dict[str, Any] = json.loads((venv / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp


def wait_for_turn(descriptor: int) -> None:
    """Lock the open pyproject.toml; the kernel lets go when this process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another process that is at work on the environment")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def usable(python: Path, *, pip: bool) -> bool:
    """Tell whether ``python`` runs, with this version, and has pip where it is needed."""
    if not pip and Path(sys.executable) == python:
        return True
    code = "import platform; print(platform.python_version())" + ("; import pip" if pip else "")
    try:
        answer = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.strip() == platform.python_version()


def create(venv: Path, *, pip: bool) -> None:
    # This may run from the very environment that is cleared: use what it stands on.
    base = getattr(sys, "_base_executable", sys.executable)
    options = ["--clear"] if pip else ["--clear", "--without-pip"]
    run([base, "-I", "-m", "venv", *options, str(venv)])


def requirements(declared: dict[str, Any], groups: set[str]) -> list[str]:
    """Read the groups here: pip learned to in 25.1, and new environments have older ones."""
    return [line for group in sorted(groups) for line in declared["dependency-groups"][group]]


def install(python: Path, packages: list[str], uv: str | None) -> None:
    if uv is None:
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    else:
        command = [uv, "pip", "install", "--compile-bytecode", "--python", str(python)]
    run([*command, "--quiet", "--editable", str(ROOT), *packages])


def run(command: list[str]) -> None:
    # Standard output belongs to whoever reads the path that this file prints.
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
        sys.exit(f"{os.fspath(command[0])} failed; the environment is not complete.")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), set(sys.argv[2:])))
