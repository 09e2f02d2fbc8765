"""Reloads that fail: the old generation goes on, and whoever asked is told why."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pulsar.actors.control_messages import ServerStatus
from pulsar.errors import ControlError
from tests.support.tree import PULSAR, Tree, deploy, descendants, until, write

# The served application, with a hook.
SERVER = """
from pulsar.apps.socket import SocketServer

def hook(worker):
    {hook}

server = SocketServer(App, name="shop", on_worker_start=hook)
"""


def deploy_server(directory: Path, version: int, hook: str = "pass", more: str = "") -> None:
    deploy(directory, version, more=SERVER.format(hook=hook) + more)


def setup(directory: Path, *binds: str, **settings: object) -> None:
    lines = [f"bind = {list(binds)!r}", *(f"{key} = {value!r}" for key, value in settings.items())]
    write(directory / "pulsar.toml", "\n".join(lines) + "\n")


@contextmanager
def shop(directory: Path, *options: object) -> Iterator[Tree]:
    """Two workers of version 1."""
    deploy_server(directory, 1)
    setup(directory, "127.0.0.1:0")
    arguments = ("app:server", "-c", "pulsar.toml", "--workers", 2, *options)
    with Tree(PULSAR, "serve", *arguments, cwd=directory) as tree:
        tree.until_ready(2)
        yield tree


def refused(tree: Tree) -> str:
    """What the server says when its reload fails; then everything is as it was."""
    before = tree.status()
    with pytest.raises(ControlError) as caught:
        tree.control("reload")
    as_it_was(tree, before)
    return str(caught.value)


def as_it_was(tree: Tree, before: ServerStatus) -> None:
    after = tree.until_ready(2, generation=before.generation)
    assert after.applications[0].addresses == before.applications[0].addresses
    assert [slot.generation for slot in after.applications[0].slots] == [1, 1]
    assert tree.who().version == 1


def test_pulsar_reload_says_why_and_fails(tmp_path: Path) -> None:
    with shop(tmp_path) as tree:
        before = tree.status()
        write(tmp_path / "app.py", "import not_there\n")
        done = tree.command("reload")
        assert done.returncode == 1
        assert done.stderr == (
            "Traceback (most recent call last):\n"
            f'  File "{tmp_path / "app.py"}", line 1, in <module>\n'
            "    import not_there\n"
            "ModuleNotFoundError: No module named 'not_there'\n"
            "pulsar: error: the module 'app' cannot be imported, see the traceback above\n"
            f"pulsar: error: shop ({tree.pid}) has not been reloaded, it goes on as it was\n"
        )
        as_it_was(tree, before)
        assert tree.stop() == 0


def test_code_that_cannot_be_imported(tmp_path: Path) -> None:
    with shop(tmp_path) as tree:
        workers = tree.workers()
        with tree.client() as kept:
            assert kept.ask("VERSION") == 1
            for source, reason in (
                ("def App(:\n", "SyntaxError: invalid syntax"),
                ("raise OSError('no disk')\n", "OSError: no disk"),
                ("import os; os._exit(5)\n", "exited with code 5"),
                ("pass\n", "the module 'app' has no 'server'"),
            ):
                write(tmp_path / "app.py", source)
                said = refused(tree)
                assert said.count(reason) == 1, said
                if "Error: " in reason:
                    assert f'File "{tmp_path / "app.py"}", line 1' in said
                # The operator reads it, too.
                tree.wait_for(reason)
                assert tree.stderr.count(reason) == 1
                assert kept.ask("VERSION") == 1
            assert tree.workers() == workers
        # Nobody has asked but the signal: the log is where it is told.
        write(tmp_path / "app.py", "raise OSError('disk is full')\n")
        tree.send(signal.SIGHUP)
        tree.wait_for("not reloaded, everything goes on as it was")
        tree.wait_for("OSError: disk is full")
        deploy_server(tmp_path, 2)
        tree.reload()
        assert tree.until_ready(2).ready
        assert tree.who().version == 2
        assert tree.stop() == 0


def test_settings_that_cannot_be_used(tmp_path: Path) -> None:
    with shop(tmp_path) as tree, socket.create_server(("127.0.0.1", 0)) as taken:
        workers = tree.workers()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        setup(tmp_path, "127.0.0.1:0", "unix:new", address)
        said = refused(tree)
        assert f"bind '{address}': " in said
        assert not (tmp_path / "new").exists()
        setup(tmp_path, "127.0.0.1:0", keep_alive="long")
        assert "keep_alive" in refused(tree)
        write(tmp_path / "pulsar.toml", "= 1")
        assert "pulsar.toml" in refused(tree)
        assert tree.workers() == workers
        assert tree.stop() == 0


def test_workers_that_cannot_start(tmp_path: Path) -> None:
    with shop(tmp_path) as tree:
        workers = tree.workers()
        deploy_server(tmp_path, 2, hook="raise RuntimeError('no database')")
        said = refused(tree)
        assert said.count("RuntimeError: no database") == 1
        assert tree.stderr.count("RuntimeError: no database") <= 1
        deploy_server(tmp_path, 2, hook="os._exit(5)")
        assert "exited with code 5" in refused(tree)
        assert tree.workers() == workers
        assert "is started again" not in tree.stderr
        assert tree.status().applications[0].restarts == 0
        assert tree.stop() == 0


def test_workers_that_never_become_ready(tmp_path: Path) -> None:
    with shop(tmp_path, "--boot-timeout", 4) as tree:
        workers = tree.workers()
        deploy_server(tmp_path, 2, hook="sleep_for_ever()")
        assert "it has taken longer than 4 s to start (boot_timeout)" in refused(tree)
        assert tree.workers() == workers
        tree.wait_for("in sleep_for_ever")
        assert tree.stop() == 0


@pytest.mark.parametrize("reuse_port", ["--no-reuse-port", "--reuse-port"])
def test_the_second_slot_fails_and_the_first_goes_back(tmp_path: Path, reuse_port: str) -> None:
    with shop(tmp_path, reuse_port) as tree, tree.client() as busy:
        workers = tree.workers()
        busy.send(f"until({str(tmp_path / 'go')!r})")
        # Only when the first one serves does the second one fail.
        hook = "block('failed') if worker.slot else None; assert not worker.slot, 'slot 1'"
        deploy_server(tmp_path, 2, hook=hook)
        tree.send(signal.SIGHUP)
        until(lambda: tree.slots()[0].generation == 2, "the first slot is served by new code")
        until(lambda: 2 in {tree.who().version for _ in range(8)}, "new code answers")
        (tmp_path / "failed").touch()
        tree.wait_for("not reloaded, everything goes on as it was")
        tree.wait_for("AssertionError: slot 1")
        (tmp_path / "go").touch()
        assert busy.receive()
        status = tree.until_ready(2, generation=1)
        slots = status.applications[0].slots
        assert [slot.generation for slot in slots] == [1, 1]
        assert (slots[0].pid != workers[0], slots[1].pid) == (True, workers[1])
        assert {tree.who().version for _ in range(8)} == {1}
        assert len(descendants(tree.pid)) == 3
        deploy_server(tmp_path, 3)
        tree.reload()
        tree.until_ready(2)
        assert tree.who().version == 3
        assert tree.stop() == 0


def test_a_fork_server_that_dies_while_it_loads(tmp_path: Path) -> None:
    with shop(tmp_path) as tree:
        before = tree.status()
        # It waits for ever, and by now it has closed what it did not know.
        deploy_server(tmp_path, 2, more="os.closerange(3, 100)\nsleep_for_ever()\n")
        assert "killed by SIGKILL" in refused(tree)
        deploy_server(tmp_path, 2, more="sleep_for_ever()\n")
        tree.send(signal.SIGHUP)
        until(lambda: len(tree.status().forkservers) == 2, "it loads")
        os.kill(tree.status().forkservers[1].pid, signal.SIGKILL)
        tree.wait_for("the process that loads the application killed by SIGKILL", 2)
        as_it_was(tree, before)
        assert tree.stop() == 0


def test_without_preloading(tmp_path: Path) -> None:
    with shop(tmp_path, "--no-preload") as tree:
        write(tmp_path / "app.py", "raise OSError('no disk')\n")
        assert "OSError: no disk" in refused(tree)
        deploy_server(tmp_path, 2)
        assert tree.control("reload") is None
        assert tree.who().version == 2
        assert tree.stop() == 0


def test_what_takes_a_restart(tmp_path: Path) -> None:
    with shop(tmp_path) as tree:
        source = (tmp_path / "app.py").read_text()
        setup(tmp_path, "127.0.0.1:0", concurrency="thread")
        assert "this takes a restart" in refused(tree)
        setup(tmp_path, "127.0.0.1:0", workers=0)
        assert tree.control("reload") is None, "a flag counts more than the file"
        write(tmp_path / "app.py", source.replace('name="shop"', 'name="inn"'))
        assert tree.control("reload") is None
        tree.wait_for("these settings have changed and need a restart: name")
        assert tree.until_ready(2, generation=4).name == "shop"
        assert tree.stop() == 0
