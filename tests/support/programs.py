"""Foreign programs that tests talk to: found, or the test is skipped.

Owns: what happens when a program is not installed.
Leaves: installing them to whoever runs the tests; ``.ci/run`` does.
"""

import os
import shutil

import pytest

REQUIRE = "REQUIRE_PROGRAMS"


def require_program(name: str, package: str) -> str:
    """Return the path of the program ``name``, which Debian's ``package`` brings.

    Without it the test is skipped, or fails where REQUIRE_PROGRAMS=1
    says that a skip would hide a hole.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"{name} is not installed (Debian package {package})"
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{reason}, and {REQUIRE}=1 forbids to skip", pytrace=False)
    pytest.skip(reason)
