"""What is true of every example; what each does is tested beside it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import EXAMPLES, clean_environment

MANAGERS = sorted(EXAMPLES.glob("*/manage.py"))
# What an example has to be told before its settings.
FIRST = {"dnsserver": ["udp"]}


@pytest.mark.parametrize("manage", MANAGERS, ids=lambda path: path.parent.name)
def test_an_example_is_complete_and_its_settings_are_fine(manage: Path) -> None:
    name = manage.parent.name
    assert (manage.parent / "tests.py").exists()
    assert f"\n**{name}** " in (EXAMPLES / "README.md").read_text()
    check = subprocess.run(
        [sys.executable, "-W", "error", "manage.py", *FIRST.get(name, []), "--check"],
        cwd=manage.parent,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert (check.stdout.endswith(": settings and application are fine\n"), check.stderr) == (
        True,
        "",
    )


def test_every_directory_is_an_example() -> None:
    directories = {path for path in EXAMPLES.iterdir() if path.is_dir()}
    assert directories - {EXAMPLES / "__pycache__"} == {path.parent for path in MANAGERS}
