"""The repository's own commands: which Python they take, and when they install.

An installer that only takes notes stands in for uv, so nothing here needs a
network, and ``.venv`` stays as it is: the scripts run in a copy.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

UV = """#!/bin/sh
echo "$@" >> "{log}"
"""


class Checkout:
    """A copy of what the scripts need, with a PATH of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root / "a copy"
        self.programs = root / "bin"
        self.log = root / "uv.log"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.programs.mkdir()
        for name in ("sh", "dirname"):
            self.programs.joinpath(name).symlink_to(str(shutil.which(name)))

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *groups: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.root / "scripts" / "environment", *groups],
            env={"PATH": str(self.programs), **env},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *groups: str, **env: str) -> "subprocess.CompletedProcess[str]":
        with self.start(*groups, **env) as process:
            output, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def installed(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    checkout = Checkout(tmp_path)
    # A link to a virtual environment's interpreter would lose the environment.
    base = getattr(sys, "_base_executable", sys.executable)
    checkout.program("python3", f'#!/bin/sh\nexec "{base}" "$@"\n')
    checkout.program("uv", UV.format(log=checkout.log))
    return checkout


def test_the_environment_is_made_once(checkout: Checkout) -> None:
    first = checkout.run()
    python = Path(first.stdout.removesuffix("\n"))
    assert python == checkout.root / ".venv/bin/python"
    prefix = subprocess.run(
        [python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert prefix.stdout.strip() == str(checkout.root / ".venv")
    second = checkout.run()
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert len(checkout.installed()) == 1


def test_groups_are_added_to_what_is_there(checkout: Checkout) -> None:
    checkout.run()
    checkout.run("test")
    checkout.run("test")
    checkout.run()
    plain, with_tests = checkout.installed()
    assert "--editable" in plain
    assert "pytest>=" not in plain
    assert "pytest>=" in with_tests


def test_changed_requirements_are_installed_with_the_groups_of_before(checkout: Checkout) -> None:
    checkout.run("test")
    pyproject = checkout.root / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("pytest>=8.3", "pytest>=8.4"))
    checkout.run()
    assert "pytest>=8.4" in checkout.installed()[-1]


def test_changed_settings_of_tools_install_nothing(checkout: Checkout) -> None:
    checkout.run()
    pyproject = checkout.root / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("line-length = 100", "line-length = 90"))
    checkout.run()
    assert len(checkout.installed()) == 1


def test_a_broken_environment_is_made_anew(checkout: Checkout) -> None:
    checkout.run()
    python = checkout.root / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/no/such/interpreter")
    assert "making .venv" in checkout.run().stderr
    assert len(checkout.installed()) == 2


def test_a_failed_installation_is_tried_again(checkout: Checkout) -> None:
    checkout.program("uv", "#!/bin/sh\necho no network >&2\nexit 1\n")
    failed = checkout.run()
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "no network" in failed.stderr
    assert "the environment is not complete" in failed.stderr
    checkout.program("uv", UV.format(log=checkout.log))
    assert checkout.run().returncode == 0
    assert len(checkout.installed()) == 1


def test_two_at_once_install_once(checkout: Checkout) -> None:
    with checkout.start("test") as one, checkout.start("test") as other:
        paths = {process.communicate()[0] for process in (one, other)}
    assert (one.returncode, other.returncode) == (0, 0)
    assert len(paths) == 1
    assert len(checkout.installed()) == 1


def test_a_python_that_is_too_old_is_passed_over(checkout: Checkout) -> None:
    checkout.program("python3.13", "#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    checkout.program("python3.12", "#!/bin/sh\nexit 1\n")
    assert checkout.run().returncode == 0


def test_without_any_python_the_message_says_what_is_needed(checkout: Checkout) -> None:
    checkout.programs.joinpath("python3").unlink()
    answer = checkout.run()
    assert answer.returncode == 1
    assert answer.stderr.startswith("pulsar needs Python 3.11 or newer")


def test_a_named_python_that_will_not_do_is_refused(checkout: Checkout) -> None:
    checkout.program("old", "#!/bin/sh\nexit 1\n")
    answer = checkout.run(PYTHON="old")
    assert answer.returncode == 1
    assert answer.stderr.startswith("PYTHON=old is not a Python 3.11 or newer")


def test_an_unknown_group_is_refused(checkout: Checkout) -> None:
    answer = checkout.run("tests")
    assert answer.returncode == 1
    assert "no dependency group 'tests', but test, " in answer.stderr


@pytest.mark.parametrize("script", ["serve", "test", "environment"])
def test_scripts_are_programs_for_any_posix_shell(script: str) -> None:
    path = ROOT / "scripts" / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", path], check=True)
