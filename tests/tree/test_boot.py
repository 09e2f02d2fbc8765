"""Starts that fail: the exit code, the reason, once, and nothing that is left."""

import socket
from pathlib import Path

import pytest

from tests.support.tree import PULSAR, deploy, run_to_end, serve

HOOKED = """
import os, app
from pulsar.apps.socket import SocketServer

{hook}

server = SocketServer(app.App, name="hooked", {name}=hook)
"""

FAILING_HOOK = """
def hook(worker):
    raise RuntimeError("no database")
"""


def hooked(directory: Path, hook: str, name: str = "on_worker_start") -> None:
    """Deploy ``hooked:server``, with a hook."""
    deploy(directory)
    (directory / "hooked.py").write_text(HOOKED.format(hook=hook, name=name))


def failed(directory: Path, *arguments: object) -> tuple[int, str]:
    return run_to_end(PULSAR, "serve", *arguments, "--bind", "127.0.0.1:0", cwd=directory)


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_a_worker_that_cannot_start_ends_the_start(tmp_path: Path, preload: str) -> None:
    hooked(tmp_path, FAILING_HOOK)
    code, said = failed(tmp_path, "hooked:server", "--workers", 3, preload)
    assert code == 3
    assert said.count("RuntimeError: no database") == 1
    assert said.count("hooked.py") == 1
    assert said.startswith("hooked: error: Traceback")
    assert "serves on" not in said


def test_a_worker_that_dies_at_its_start_is_tried_again_when_that_came_from_outside(
    tmp_path: Path,
) -> None:
    hooked(tmp_path, "def hook(worker):\n    os.kill(os.getpid(), 9)")
    code, said = failed(tmp_path, "hooked:server")
    assert code == 3
    assert said.count("killed by SIGKILL, perhaps out of memory") == 3
    last = said.splitlines()[-1]
    assert last.startswith("hooked: error: ")
    assert last.endswith("killed by SIGKILL, perhaps out of memory")


def test_a_worker_that_exits_at_its_start(tmp_path: Path) -> None:
    hooked(tmp_path, "def hook(worker):\n    os._exit(7)")
    code, said = failed(tmp_path, "hooked:server", "--workers", 2)
    assert code == 3
    assert said.count("exited with code 7") == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def App(:\n", "SyntaxError"),
        ("import not_there\n", "ModuleNotFoundError: No module named 'not_there'"),
        ("raise OSError('no disk')\n", "OSError: no disk"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
    ],
)
@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_an_application_that_cannot_be_imported(
    tmp_path: Path, source: str, reason: str, preload: str
) -> None:
    (tmp_path / "broken.py").write_text(source)
    code, said = failed(tmp_path, "broken:App", "--workers", 2, preload)
    assert code == 4
    assert said.count(reason) == 1
    assert said.startswith(("Traceback", f'  File "{tmp_path}/broken.py", line 1'))
    assert said.endswith("the module 'broken' cannot be imported, see the traceback above\n")
    assert "_bootstrap" not in said
    assert "cli.py" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("nowhere:App",), 4, "there is no module 'nowhere'"),
        (("app:Ap",), 4, "the module 'app' has no 'Ap': did you mean 'App'?"),
        (("app:App", "--wrokers", "2"), 2, "--wrokers"),
        (("app:App", "--workers", "many"), 2, "workers"),
        (("app:App", "--bind", "127.0.0.1:99999"), 2, "99999"),
        (("app:VERSION",), 3, "cannot serve"),
        (("app:App", "--cert-file", "no.pem"), 2, "no.pem"),
        (("app:App", "--cert-file", "app.py"), 3, "app.py"),
        (("app:App", "--user", "no-such-user"), 3, "there is no user 'no-such-user'"),
    ],
)
def test_one_sentence_and_the_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    deploy(tmp_path)
    got, said = failed(tmp_path, *arguments)
    last = said.splitlines()[-1]
    assert (got, reason in last, "Traceback" in said) == (code, True, False), said
    assert said.count("error:") == 1, said


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    deploy(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = (PULSAR, "serve", "app:App", "--bind", "unix:socket", "--pidfile", "pid")
        code, said = run_to_end(*arguments, "--bind", address, cwd=tmp_path)
    assert code == 3
    assert said.splitlines() == [said.rstrip("\n")]
    assert said.startswith(f"app:App: error: bind '{address}': ")
    assert {path.name for path in tmp_path.iterdir()} <= {"app.py", "__pycache__"}


def test_a_live_pid_file_is_refused_and_a_stale_one_replaced(tmp_path: Path) -> None:
    with serve(tmp_path, "--pidfile", "pid") as tree:
        code, said = failed(tmp_path, "app:App", "--pidfile", "pid")
        assert code == 3
        assert str(tree.pid) in said
        assert (tmp_path / "pid").read_text() == f"{tree.pid}\n"
        assert tree.stop() == 0
    (tmp_path / "pid").write_text(f"{tree.pid}\n")
    with serve(tmp_path, "--pidfile", "pid") as again:
        assert (tmp_path / "pid").read_text() == f"{again.pid}\n"


def test_an_import_that_takes_too_long(tmp_path: Path) -> None:
    deploy(tmp_path, more="sleep_for_ever()")
    code, said = failed(tmp_path, "app:App", "--boot-timeout", "0.3")
    assert code == 3
    assert said == (
        "app:App: error: importing the application has taken longer than 0.3 s (boot_timeout)\n"
    )


def test_a_worker_that_takes_too_long_to_start_says_where_it_stands(tmp_path: Path) -> None:
    hooked(tmp_path, "def hook(worker):\n    app.sleep_for_ever()")
    code, said = failed(tmp_path, "hooked:server", "--boot-timeout", "1.5")
    assert code == 3
    assert "it has taken longer than 1.5 s to start (boot_timeout)" in said
    assert "in sleep_for_ever" in said


def test_a_fork_server_that_dies_while_it_imports(tmp_path: Path) -> None:
    deploy(tmp_path, more="os.kill(os.getpid(), 9)")
    code, said = failed(tmp_path, "app:App")
    assert code == 3
    assert said.count("\n") == 1
    assert "SIGKILL" in said


def test_a_slow_start_is_no_stuck_worker(tmp_path: Path) -> None:
    # Twice the time after which a worker that serves would be killed.
    hooked(tmp_path, "import time\ndef hook(worker):\n    time.sleep(1)")
    with serve(tmp_path, "--timeout", 0.5, target="hooked:server") as tree:
        tree.until_ready(1)
        assert "is stuck" not in tree.stderr


def test_a_worker_that_fails_later_is_started_again_and_again(tmp_path: Path) -> None:
    hooked(
        tmp_path,
        "def hook(worker):\n"
        "    if worker.slot == 0 and os.path.exists('broken'):\n"
        "        raise RuntimeError('no database')",
    )
    with serve(tmp_path, "--workers", 2, target="hooked:server") as tree:
        [first, second] = tree.workers()
        (tmp_path / "broken").touch()
        with tree.client_of(first) as client:
            client.send("end(7)")
            assert client.at_end()
        for pause in ("0.1", "0.2", "0.4"):
            tree.wait_for(f"hooked: worker 0 is started again in {pause} s")
            assert tree.who().pid == second
        status = tree.status()
        assert (status.ready, status.state, status.applications[0].ready) == (False, "running", 1)
        done = tree.command("status")
        assert done.returncode == 1
        assert "1 of 2 workers ready" in done.stdout
        assert "last failure: Traceback" in done.stdout
        (tmp_path / "broken").unlink()
        tree.until_ready(2)
        assert {slot.pid for slot in tree.slots()} >= {second}
        failures = tree.stderr.count("RuntimeError: no database")
        assert failures == tree.stderr.count("hooked: worker 0 could not start") >= 3
        assert "exited with code 7" in tree.stderr
        assert tree.stop() == 0
