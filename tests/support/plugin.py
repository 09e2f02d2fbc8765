"""The pytest plugin behind conftest.py: fixtures for every test.

Owns: the check after each test that nothing is left behind, the fixtures
``loop_kind`` and ``run``, and the removal of what killed processes have measured.
Leaves: what is looked for to leaks.py, the loops to loops.py.
"""

import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from hypothesis import settings

from tests.support import leaks, loops

RAISED: pytest.StashKey[bool] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    leaks.prepare()
    settings.register_profile("busy", deadline=None)
    settings.load_profile("busy")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Remove, before pytest-cov reads it, what processes wrote that were killed meanwhile."""
    result = yield
    if not hasattr(session.config, "workerinput"):
        for path in session.config.rootpath.glob(".coverage.*"):
            try:
                with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as data:
                    whole = data.execute("select version from coverage_schema").fetchone()
            except sqlite3.Error:
                whole = None
            if whole is None:
                path.unlink(missing_ok=True)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if call.excinfo is not None:
        item.stash[RAISED] = True
    return (yield)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Generator[None]:
    """Fail a test that leaves threads, processes, descriptors, tasks, files or loop errors."""
    before = leaks.take()
    yield
    if request.node.stash.get(RAISED, False):
        # The traceback keeps what the test held alive: only processes must not stay.
        leaks.kill_children(before)
        loops.late_errors()
        return
    found = leaks.since(before, leaks.PATIENCE)
    found += map(loops.describe, loops.late_errors())
    if found:
        pytest.fail("the test left behind:\n- " + "\n- ".join(found), pytrace=False)


@pytest.fixture(params=list(loops.KINDS))
def loop_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of event loop in turn; the test runs once per kind."""
    kind: str = request.param
    return kind


@pytest.fixture
def run(loop_kind: str) -> Callable[..., Any]:
    """``loops.run`` on each kind of loop in turn."""
    return partial(loops.run, loop=loop_kind)
