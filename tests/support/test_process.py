"""Servers of tests that fail leave nothing behind."""

import os

import pytest

from tests.support.plain import connect
from tests.support.process import EXAMPLES, ServerProcess


def test_a_failing_test_ends_every_process_of_its_server() -> None:
    command = ("manage.py", "--bind", "127.0.0.1:0", "--workers", "2")
    with (
        pytest.raises(ZeroDivisionError) as caught,
        ServerProcess(*command, cwd=EXAMPLES / "echo") as server,
        connect(server.address) as client,
    ):
        client.sendall(b"half a mess")  # a worker would wait for the rest
        pids = {server.process.pid, *server.below}
        1 / 0  # noqa: B018
    assert len(pids) == 4
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "serves on" in caught.value.__notes__[0]


def test_a_server_that_does_not_start_is_explained() -> None:
    with (
        pytest.raises(AssertionError, match=r"(?s)has ended with code 2 .*unknown flag --bnd"),
        ServerProcess("manage.py", "--bnd", ":0", cwd=EXAMPLES / "echo"),
    ):
        pass
