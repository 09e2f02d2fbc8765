"""How a process tree starts and stops: signals, exit codes, the log, and what is left."""

import os
import pty
import signal
import stat
from pathlib import Path

import pytest

from tests.support.tree import Tree, deploy, descendants, gone, serve, until

GRACEFULLY = {signal.SIGTERM, signal.SIGINT}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_stops_the_tree(tmp_path: Path, number: signal.Signals) -> None:
    with serve(
        tmp_path, "--workers", 2, "--bind", "unix:socket", "--pidfile", "pid", listens=2
    ) as tree:
        tree.until_ready(2)
        assert (tmp_path / "pid").read_text() == f"{tree.pid}\n"
        assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)
        with tree.client() as idle, tree.client() as busy, tree.client(1) as local:
            for client in (idle, local):
                client.ask("who()")
            busy.send(f"until({str(tmp_path / 'go')!r})")
            tree.send(number)
            if number in GRACEFULLY:
                tree.wait_for("stopping gracefully")
                (tmp_path / "go").touch()
                assert busy.receive() == str(tmp_path / "go")
            for client in (busy, idle, local):
                assert client.at_end()
        assert tree.wait() == 0
        said = [line.partition("[INFO] ")[2] for line in tree.stderr.splitlines()]
        how = "gracefully" if number in GRACEFULLY else "at once"
        assert said == [
            f"app:App serves on {tree.addresses[0]}",
            f"app:App serves on unix:{tmp_path / 'socket'}",
            f"{number.name}: stopping {how}",
            "app:App has stopped",
        ]
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_means_now(tmp_path: Path, number: signal.Signals) -> None:
    with serve(tmp_path, "--workers", 2) as tree, tree.client() as busy:
        busy.send("until('/never')")
        tree.ask("who()")
        tree.send(number)
        tree.wait_for("stopping gracefully")
        tree.send(number)
        assert busy.at_end()
        assert tree.wait() == 0
        assert f"{number.name} again: stopping at once" in tree.stderr


def test_what_takes_too_long_is_cut(tmp_path: Path) -> None:
    with serve(tmp_path, "--graceful-timeout", 0.2) as tree, tree.client() as busy:
        busy.send("until('/never')")
        tree.ask("who()")
        tree.send(signal.SIGTERM)
        assert busy.at_end()
        assert tree.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_is_led_by_the_arbiter(
    tmp_path: Path, number: signal.Signals
) -> None:
    with serve(tmp_path, "--workers", 2) as tree, tree.client() as busy:
        busy.send(f"until({str(tmp_path / 'go')!r})")
        tree.until_ready(2)
        os.killpg(tree.pid, number)
        tree.wait_for("stopping gracefully")
        (tmp_path / "go").touch()
        assert busy.receive() == str(tmp_path / "go")
        assert tree.wait() == 0
        assert "is replaced" not in tree.stderr


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    try:
        with (
            serve(tmp_path, "--workers", 2, terminal=os.ttyname(terminal)) as tree,
            tree.client() as busy,
        ):
            busy.send(f"until({str(tmp_path / 'go')!r})")
            tree.until_ready(2)
            os.write(keyboard, b"\x03")
            tree.wait_for("SIGINT: stopping gracefully")
            (tmp_path / "go").touch()
            assert busy.receive() == str(tmp_path / "go")
            assert tree.wait() == 0
    finally:
        os.close(keyboard)
        os.close(terminal)


def test_ctrl_c_twice_in_a_terminal(tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    try:
        with (
            serve(tmp_path, terminal=os.ttyname(terminal)) as tree,
            tree.client() as busy,
        ):
            busy.send("until('/never')")
            tree.ask("who()")
            os.write(keyboard, b"\x03")
            tree.wait_for("SIGINT: stopping gracefully")
            os.write(keyboard, b"\x03")
            assert busy.at_end()
            assert tree.wait() == 0
    finally:
        os.close(keyboard)
        os.close(terminal)


def test_a_signal_to_one_worker_replaces_it(tmp_path: Path) -> None:
    with serve(tmp_path) as tree, tree.client() as busy:
        [worker] = tree.workers()
        busy.send(f"until({str(tmp_path / 'go')!r})")
        os.kill(worker, signal.SIGTERM)
        tree.wait_for(f"({worker}) is replaced: it got SIGTERM")
        successor = until(lambda: [pid for pid in tree.workers() if pid != worker], "a successor")
        # It is there before the old one accepts no more.
        until(lambda: tree.who().pid == successor[0], "the successor answers")
        assert not gone(worker)
        (tmp_path / "go").touch()
        assert busy.receive() == str(tmp_path / "go")
        until(lambda: gone(worker), "the worker has gone")
        assert tree.until_ready(1).applications[0].restarts == 0
        # The arbiter says what interrupts.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2):
            os.kill(successor[0], number)
        assert tree.who().pid == successor[0]


def test_signals_to_the_fork_server_change_nothing(tmp_path: Path) -> None:
    with serve(tmp_path) as tree:
        before = tree.until_ready(1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            os.kill(tree.forkserver, number)
        tree.control("scale", workers=2)
        assert tree.until_ready(2).forkservers == before.forkservers


def test_the_queue_is_served_when_the_tree_stops(tmp_path: Path) -> None:
    with serve(tmp_path) as tree:
        with tree.client() as first:
            first.block(tmp_path / "go")
            queued = [tree.client() for _ in range(20)]
            try:
                for client in queued:
                    client.send("VERSION")
                tree.send(signal.SIGTERM)
                tree.wait_for("stopping gracefully")
                (tmp_path / "go").touch()
                assert first.receive() == str(tmp_path / "go")
                assert [client.receive() for client in queued] == [1] * 20
            finally:
                for client in queued:
                    client.close()
        assert tree.wait() == 0


def test_stop_while_the_application_is_imported(tmp_path: Path) -> None:
    deploy(tmp_path, more="open('importing', 'w').close(); sleep_for_ever()")
    with serve(tmp_path, listens=0) as tree:
        until((tmp_path / "importing").exists, "it is imported")
        assert descendants(tree.pid)
        tree.send(signal.SIGTERM)
        assert tree.wait() == 0
        assert "Traceback" not in tree.stderr


def test_stop_while_a_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "hooked.py").write_text(
        "import app\n"
        "from pulsar.apps.socket import SocketServer\n"
        "async def start(worker):\n"
        "    open('starting', 'w').close()\n"
        "    await app.until('/never')\n"
        "server = SocketServer(app.App, name='hooked', on_worker_start=start)\n"
    )
    with serve(tmp_path, target="hooked:server", listens=0) as tree:
        until((tmp_path / "starting").exists, "a worker starts")
        tree.send(signal.SIGHUP)
        tree.wait_for("SIGHUP: not now, the server is starting or stopping")
        tree.send(signal.SIGTERM)
        assert tree.wait() == 0
        assert "Traceback" not in tree.stderr


def test_stop_while_new_code_is_imported(tmp_path: Path) -> None:
    with serve(tmp_path) as tree:
        with tree.client() as busy:
            busy.send(f"until({str(tmp_path / 'go')!r})")
            tree.who()
            deploy(tmp_path, 2, more="open('importing', 'w').close(); sleep_for_ever()")
            tree.send(signal.SIGHUP)
            until((tmp_path / "importing").exists, "the new code is imported")
            tree.send(signal.SIGTERM)
            tree.wait_for("not reloaded: the server is stopping")
            (tmp_path / "go").touch()
            assert busy.receive()
        assert tree.wait() == 0
        assert "ERROR" not in tree.stderr


def test_stop_while_new_code_takes_over(tmp_path: Path) -> None:
    (tmp_path / "hooked.py").write_text(
        "import app, os\n"
        "from pulsar.apps.socket import SocketServer\n"
        "async def start(worker):\n"
        "    if worker.generation == 2:\n"
        "        open(f'starting-{worker.slot}', 'w').close()\n"
        "        app.block('started')\n"
        "server = SocketServer(app.App, name='hooked', on_worker_start=start, workers=2)\n"
    )
    with serve(tmp_path, target="hooked:server") as tree:
        with tree.client() as busy:
            busy.send(f"until({str(tmp_path / 'go')!r})")
            tree.who()
            tree.send(signal.SIGHUP)
            until((tmp_path / "starting-0").exists, "the first of the new workers starts")
            tree.send(signal.SIGTERM)
            tree.wait_for("stopping gracefully")
            (tmp_path / "started").touch()
            # There is no second one, which nobody would tell to end.
            tree.wait_for("not reloaded: the server is stopping")
            (tmp_path / "go").touch()
            assert busy.receive()
        assert tree.wait() == 0
        assert "ERROR" not in tree.stderr
    assert not (tmp_path / "starting-1").exists()


@pytest.mark.parametrize("words", [(), ("--now",)], ids=["gracefully", "now"])
def test_pulsar_stop(tmp_path: Path, words: tuple[str, ...]) -> None:
    with serve(tmp_path, "--workers", 2) as tree:
        with tree.client() as busy:
            busy.send(f"until({str(tmp_path / ('never' if words else 'go'))!r})")
            tree.who()
            (tmp_path / "go").touch()
            done = tree.command("stop", *words)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"app:App ({tree.pid}) has stopped\n"
            if not words:
                assert busy.receive()
            assert busy.at_end()
        assert tree.wait() == 0
        assert "app:App has stopped" in tree.stderr


def test_a_script_serves_what_it_has_built(tmp_path: Path) -> None:
    deploy(tmp_path)
    (tmp_path / "script.py").write_text(
        "import app, sys\n"
        "from pulsar.apps.socket import SocketServer\n"
        "def main():\n"
        "    class Local(app.App):\n"
        "        pass\n"
        "    SocketServer(lambda: Local(), bind='127.0.0.1:0', workers=2).start()\n"
        "    print('it has returned', file=sys.stderr)\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    with Tree("script.py", cwd=tmp_path) as tree:
        tree.until_ready(2)
        assert tree.who().version == 1
        assert tree.stop(signal.SIGTERM) == 0
        assert "it has returned" in tree.stderr


def test_a_client_survives_what_it_does_not_understand(tmp_path: Path) -> None:
    with serve(tmp_path) as tree:
        with tree.client() as wrong, tree.client() as right:
            wrong.send("1 / 0")
            assert wrong.at_end()
            assert right.ask("who()")
        assert tree.who()
        tree.wait_for("ZeroDivisionError")
        assert tree.stop() == 0
