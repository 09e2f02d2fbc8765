"""Reloads that succeed: new code and new settings, slot by slot, and nothing is lost."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.process import PATIENCE
from tests.support.tree import PULSAR, Tree, deploy, gone, opened, serve, until, write

SCRIPT = """
import sys
{imports}
from pulsar.apps.socket import SocketServer

def main():
    answers = []
    # Neither could be imported by anybody.
    class Local(app.App):
        def answer(self, result):
            answers.append(result)
            super().answer(result)
    SocketServer(lambda: Local(), bind="127.0.0.1:0", name="local").start()

if __name__ == "__main__":
    main()
"""


def serve_app(directory: Path, *options: object) -> Tree:
    return Tree(PULSAR, "serve", "app:App", "--bind", "127.0.0.1:0", *options, cwd=directory)


def serve_script(directory: Path, *options: object) -> Tree:
    (directory / "script.py").write_text(SCRIPT.format(imports="import app"))
    return Tree("script.py", *options, cwd=directory)


def serve_package(directory: Path, *options: object) -> Tree:
    package = directory / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SCRIPT.format(imports="from . import app"))
    deploy(package)
    # What the interpreter was told, it is told again.
    return Tree("-X", "utf8", "-m", "package", *options, cwd=directory)


KINDS = {"serve": serve_app, "script": serve_script, "package": serve_package}


@contextmanager
def served(kind: str, directory: Path, *options: object) -> Iterator[tuple[Tree, Path]]:
    """A tree of that kind, and where its module ``app`` is."""
    deploy(directory)
    with KINDS[kind](directory, *options) as tree:
        yield tree, directory / "package" if kind == "package" else directory


@pytest.mark.parametrize(
    ("kind", "workers"), [("serve", 2), ("serve", 1), ("script", 1), ("package", 2)]
)
def test_new_code_serves(kind: str, workers: int, tmp_path: Path) -> None:
    with served(kind, tmp_path, "--workers", workers) as (tree, where):
        first = tree.until_ready(workers)
        with tree.client() as busy:
            assert busy.ask("VERSION") == 1
            busy.send(f"until({str(tmp_path / 'go')!r})")
            tree.who()
            deploy(where, 2)
            tree.send(signal.SIGHUP)
            tree.wait_for("SIGHUP: reloading")
            tree.wait_for("reloaded: generation 2 serves")
            assert [tree.who().version for _ in range(4)] == [2] * 4
            (tmp_path / "go").touch()
            assert busy.receive()
        second = tree.until_ready(workers, generation=2)
        for old, new in zip(first.applications[0].slots, second.applications[0].slots, strict=True):
            assert (old.slot, old.generation + 1) == (new.slot, new.generation)
            assert old.pid is not None
            until(lambda: gone(old.pid), "the old worker has gone")  # noqa: B023 - at once
        assert first.applications[0].addresses == second.applications[0].addresses
        assert second.applications[0].restarts == 0
        assert gone(first.forkservers[0].pid)

        deploy(where, 3)
        done = tree.command("reload")
        assert (done.returncode, done.stderr) == (0, "")
        name = first.applications[0].name
        assert done.stdout.splitlines() == [
            "loading",
            *(f"{name}: worker {number} serves" for number in range(workers)),
            f"{first.name} ({tree.pid}) has been reloaded",
        ]
        assert tree.who().version == 3
        tree.until_ready(workers, generation=3)
        assert tree.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_reloads(kind: str, tmp_path: Path) -> None:
    with served(kind, tmp_path, "--reload") as (tree, where):

        def change(version: int) -> None:
            def is_noticed() -> bool:
                # What is written before somebody watches, or while a reload begins, is
                # perhaps not noticed.
                deploy(where, version)
                deadline = time.monotonic() + PATIENCE / 20
                while time.monotonic() < deadline:
                    if tree.who().version == version:
                        return True
                    time.sleep(0.01)
                return False

            until(is_noticed, "the change is noticed")

        change(2)
        tree.wait_for("app.py has changed: reloading")
        # A file that does not compile yet is waited for.
        write(where / "app.py", "def App(:\n")
        tree.wait_for("not reloaded, everything goes on as it was")
        assert tree.who().version == 2
        change(3)
        assert tree.stop() == 0


def test_nothing_piles_up(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2, "--reuse-port") as tree:

        def descriptors(pid: int) -> list[str]:
            return sorted(name.partition(":")[0] for name in opened(pid))

        def settled() -> tuple[list[str], list[str]]:
            tree.until_ready(2)
            return descriptors(tree.pid), descriptors(tree.forkserver)

        # The sockets of slots stay open, whoever listens on them.
        tree.control("scale", workers=4)
        tree.control("scale", workers=2)
        # The connection of a question is open until the server has noticed its end.
        before = min((settled() for _ in range(10)), key=lambda found: len(found[0]))
        for version in (2, 3):
            deploy(tmp_path, version)
            tree.reload()
            os.kill(tree.workers()[0], signal.SIGKILL)
            tree.until_ready(2)
            tree.control("scale", workers=4)
            tree.control("scale", workers=2)
            until(lambda: settled() == before, "all is closed")
        # Each worker has its own way to the arbiter, and nobody else's.
        one, other = (set(opened(pid)) for pid in tree.workers())
        common = {name for name in one & other if name.startswith(("socket:", "pipe:"))}
        standard_error = os.readlink(f"/proc/{tree.pid}/fd/2")
        assert common <= {standard_error}, common
        assert tree.stop() == 0


def test_the_directory_is_found_anew(tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / str(version)).mkdir()
        deploy(tmp_path / str(version), version)
    link = tmp_path / "current"
    link.symlink_to("1")
    with serve(link, env={"PWD": str(link)}) as tree:
        assert tree.who().version == 1
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(link)
        tree.reload()
        assert tree.who().version == 2


def test_relative_paths_are_taken_from_where_it_was_started(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    deploy(code, more="import sys\nsys.path.append('elsewhere')\nos.chdir('/')\n")
    setup(tmp_path, workers=2)
    arguments = ("app:App", "--chdir", "code", "-c", "pulsar.toml", "--bind", "127.0.0.1:0")
    with Tree(PULSAR, "serve", *arguments, cwd=tmp_path) as tree:
        tree.until_ready(2)
        deploy(code, 2)
        setup(tmp_path, workers=1)
        tree.reload()
        tree.until_ready(1, generation=2)
        assert tree.ask("(VERSION, os.getcwd())") == (2, str(code))
        assert tree.stop() == 0


def test_a_reload_while_another_one_is_under_way(tmp_path: Path) -> None:
    with serve(tmp_path) as tree:
        deploy(tmp_path, 2, more=f"block({str(tmp_path / 'go')!r})")
        tree.send(signal.SIGHUP)
        until(lambda: tree.status().state == "reloading", "it reloads")
        until(lambda: len(tree.status().forkservers) == 2, "it loads")
        tree.send(signal.SIGHUP)
        tree.wait_for("SIGHUP: reloading", 2)
        deploy(tmp_path, 3)
        assert tree.who().version == 1
        (tmp_path / "go").touch()
        tree.wait_for("reloaded: generation 3 serves")
        assert tree.who().version == 3
        tree.until_ready(1, generation=3)


def test_stop_while_a_reload_is_under_way(tmp_path: Path) -> None:
    with serve(tmp_path) as tree:
        deploy(tmp_path, 2, more="sleep_for_ever()")
        tree.send(signal.SIGHUP)
        until(lambda: len(tree.status().forkservers) == 2, "it loads")
        assert tree.stop() == 0


# Settings


def setup(directory: Path, **settings: object) -> None:
    """Write the file of settings."""
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    write(directory / "pulsar.toml", "\n".join(lines).replace("True", "true") + "\n")


@contextmanager
def configured(directory: Path, listens: int = 1, **settings: object) -> Iterator[Tree]:
    setup(directory, **settings)
    deploy(directory)
    with Tree(
        PULSAR, "serve", "app:App", "-c", "pulsar.toml", cwd=directory, listens=listens
    ) as tree:
        yield tree


LEVEL = "__import__('logging').getLogger('pulsar').level"


def test_new_settings_are_taken(tmp_path: Path) -> None:
    fixed = f"127.0.0.1:{free_port()}"
    with configured(tmp_path, bind=[fixed], workers=1, pidfile="pid") as tree:
        with tree.client() as patient:
            assert patient.ask(LEVEL) == 20
            setup(
                tmp_path,
                bind=[fixed],
                workers=3,
                pidfile="other",
                keep_alive=1,
                log_level="debug",
                graceful_timeout=7,
            )
            tree.reload()
            tree.wait_for("reloaded: generation 2 serves")
            tree.wait_for("these settings have changed and need a restart: pidfile")
            tree.until_ready(3, generation=2)
        config = tree.control("config")["app:App"]
        assert config["workers"] == [3, "file pulsar.toml"]
        assert config["keep_alive"][0] == 1
        assert tree.ask(LEVEL) == 10
        assert (tmp_path / "pid").exists()
        with tree.client() as idle:
            assert idle.ask("VERSION")
            assert idle.at_end()
        # And back: slots that are wanted no more are closed.
        setup(tmp_path, bind=[fixed], workers=2, pidfile="pid")
        tree.reload()
        tree.until_ready(2, generation=3)
        assert tree.ask(LEVEL) == 20
        assert tree.stop() == 0


def test_addresses_come_and_go(tmp_path: Path) -> None:
    kept, dropped = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with configured(tmp_path, 2, bind=[kept, dropped, "unix:old"], workers=2) as tree:
        with tree.client(kept) as on_kept, tree.client(dropped) as on_dropped:
            on_kept.ask("VERSION")
            on_dropped.ask("VERSION")
            on_dropped.send(f"until({str(tmp_path / 'go')!r})")
            tree.who()
            setup(tmp_path, bind=["127.0.0.1:0", "unix:new", kept], workers=2)
            tree.reload()
            addresses = tree.status().applications[0].addresses
            assert addresses[1:] == [f"unix:{tmp_path / 'new'}", kept]
            for address in addresses:
                assert tree.ask("VERSION", address) == 1
            (tmp_path / "go").touch()
            assert on_dropped.receive()
        tree.until_ready(2, generation=2)
        with pytest.raises(ConnectionRefusedError):
            until(lambda: tree.client(dropped).close(), "nobody listens")
        until(lambda: not (tmp_path / "old").exists(), "the file has gone")
        assert tree.stop() == 0
        assert not (tmp_path / "new").exists()


def test_what_the_command_line_says_counts_more(tmp_path: Path) -> None:
    setup(tmp_path, workers=2, keep_alive=5)
    with serve(tmp_path, "-c", "pulsar.toml", "--keep-alive", 9) as tree:
        setup(tmp_path, workers=1, keep_alive=6)
        tree.reload()
        tree.until_ready(1, generation=2)
        assert tree.control("config")["app:App"]["keep_alive"] == [9, "flag --keep-alive"]


def test_a_worker_that_is_still_at_it_is_cut_after_the_new_graceful_timeout(
    tmp_path: Path,
) -> None:
    with configured(tmp_path, bind=["127.0.0.1:0"], graceful_timeout=0.3) as tree:
        [worker] = tree.workers()
        with tree.client() as busy:
            busy.send("until('/never')")
            tree.who()
            deploy(tmp_path, 2)
            tree.reload()
            assert busy.at_end()
        until(lambda: gone(worker), "the old worker has gone")
        os.kill(tree.until_ready(1, generation=2).pid, 0)


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
