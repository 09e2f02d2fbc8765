"""What the application's code sees of the processes: imports, forks, hooks, and their ends."""

import logging
import signal
from pathlib import Path

import pytest

from tests.support.tree import PULSAR, Tree, deploy, run_to_end, serve, until, write

# Notes in which process each of them is called.
HOOKS = """
from pulsar.apps.socket import SocketServer

def note(text):
    with open("notes", "a") as notes:
        notes.write(f"{text} {os.getpid()}\\n")

note("import")

def when_ready(server):
    note(f"when_ready {server.name}")

def post_fork(worker):
    note(f"post_fork {worker.slot}")

async def on_worker_start(worker):
    await asyncio.sleep(0)
    note(f"on_worker_start {worker.slot}")

def on_worker_stop(worker):
    note(f"on_worker_stop {worker.slot}")

server = SocketServer(
    App, name="shop", when_ready=when_ready, post_fork=post_fork,
    on_worker_start=on_worker_start, on_worker_stop=on_worker_stop,
)
"""

SCRIPT = """
import app
if __name__ == "__main__":
    app.server.cfg.set("bind", ["127.0.0.1:0"])
    app.server.cfg.set("workers", 2)
    app.server.start()
"""


def notes(directory: Path) -> list[tuple[str, int]]:
    lines = (directory / "notes").read_text().splitlines()
    return [(text, int(pid)) for text, _, pid in (line.rpartition(" ") for line in lines)]


@pytest.mark.parametrize("how", ["serve", "no-preload", "script"])
def test_hooks_are_called_where_they_belong(tmp_path: Path, how: str) -> None:
    deploy(tmp_path, more=HOOKS)
    (tmp_path / "script.py").write_text(SCRIPT)
    options = ["serve", "app:server", "--bind", "127.0.0.1:0", "--workers", "2"]
    if how == "no-preload":
        options.append("--no-preload")
    with Tree(*(["script.py"] if how == "script" else [PULSAR, *options]), cwd=tmp_path) as tree:
        tree.until_ready(2)
        workers, forkserver = tree.workers(), tree.forkserver
        ready_in = {"serve": forkserver, "script": tree.pid}.get(how)
        if ready_in is not None:
            until(lambda: ("when_ready shop", ready_in) in notes(tmp_path), "when_ready")
        assert tree.stop() == 0
    found = notes(tmp_path)
    for slot, pid in enumerate(workers):
        texts = [text for text, where in found if where == pid]
        imports = ["import"] if how == "no-preload" else []
        assert texts == [
            *imports,
            f"post_fork {slot}",
            f"on_worker_start {slot}",
            f"on_worker_stop {slot}",
        ]
    imported = [pid for text, pid in found if text == "import"]
    match how:
        case "serve":
            assert imported == [forkserver]
        case "script":
            assert imported == [tree.pid]
        case _:
            # Once in a process that only looks, then in each worker; never in those that lead.
            assert len(imported) == 3
            assert not {tree.pid, forkserver} & set(imported)
    assert [text for text, _ in found].count("when_ready shop") == (how != "no-preload")


def test_hooks_are_called_again_after_a_reload(tmp_path: Path) -> None:
    deploy(tmp_path, more=HOOKS)
    with serve(tmp_path, target="app:server") as tree:
        [old] = tree.workers()
        tree.reload()
        tree.until_ready(1, generation=2)
        [new] = tree.workers()
        found = notes(tmp_path)
        assert ("on_worker_stop 0", old) in found
        assert ("on_worker_start 0", new) in found
        assert found.index(("on_worker_start 0", new)) < found.index(("on_worker_stop 0", old))


def test_a_hook_that_fails(tmp_path: Path) -> None:
    deploy(
        tmp_path,
        more=HOOKS.replace('note(f"when_ready {server.name}")', "1 / 0").replace(
            'note(f"on_worker_stop {worker.slot}")', "1 / 0"
        ),
    )
    with serve(tmp_path, target="app:server") as tree:
        tree.wait_for("when_ready of shop failed")
        tree.wait_for("ZeroDivisionError")
        assert tree.who()
        assert tree.stop() == 0
        assert tree.stderr.count("ZeroDivisionError") == 2


def test_a_post_fork_hook_that_fails_ends_the_start(tmp_path: Path) -> None:
    deploy(tmp_path, more=HOOKS.replace('note(f"post_fork {worker.slot}")', "1 / 0"))
    code, said = run_to_end(PULSAR, "serve", "app:server", "--bind", "127.0.0.1:0", cwd=tmp_path)
    assert code == 3
    assert said.count("ZeroDivisionError") == 1


def test_threads_of_an_import_are_named(tmp_path: Path) -> None:
    deploy(
        tmp_path,
        more="event = threading.Event()\n"
        "for name in ('poller', 'sender'):\n"
        "    threading.Thread(target=event.wait, name=name, daemon=True).start()\n",
    )
    warning = "importing the application has started threads (poller, sender)"
    threads = "sorted(thread.name for thread in threading.enumerate())"
    with serve(tmp_path) as tree:
        tree.wait_for(warning)
        assert tree.ask(threads) == ["MainThread"]
        assert tree.stop() == 0
    with serve(tmp_path, "--no-preload") as tree:
        assert tree.ask(threads) == ["MainThread", "poller", "sender"]
        assert "threads" not in tree.stderr
        assert tree.stop() == 0


def test_workers_are_processes_like_any_other(tmp_path: Path) -> None:
    deploy(
        tmp_path,
        more="import atexit, gc, logging, secrets\n"
        "IMPORTED = os.getpid()\n"
        "def at_end():\n"
        "    with open('at-end', 'a') as file:\n"
        "        file.write(f'{os.getpid()}\\n')\n"
        "atexit.register(at_end)\n"
        "def log(text):\n"
        "    logging.getLogger('shop').warning(text)\n"
        "    logging.getLogger('pulsar.shop').info(text)\n",
    )
    with serve(tmp_path, "--workers", 2, "--process-name", "shop") as tree:
        workers = tree.workers()
        clients = [tree.client_of(pid) for pid in workers]
        try:
            [one, other] = clients
            assert one.ask("IMPORTED") == other.ask("IMPORTED") == tree.forkserver
            for numbers in ("random.random()", "os.urandom(8)", "secrets.token_hex(8)"):
                assert one.ask(numbers) != other.ask(numbers)
            assert one.ask("gc.isenabled()") is True
            assert one.ask("gc.get_freeze_count() > 1000") is True
            assert one.ask("os.environ['PULSAR_WORKER_SLOT']") == "0"
            assert one.ask("signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL") is True
            # What one of them starts is no business of the fork server's.
            assert one.ask("__import__('subprocess').run(['true']).returncode") == 0
            assert one.ask("log('hello')") is None
            tree.wait_for("hello")
            assert f"[{workers[0]}] [INFO] hello" in tree.stderr
        finally:
            for client in clients:
                client.close()
        titles = [title_of(pid) for pid in (tree.pid, tree.forkserver, *workers)]
        assert titles == [
            "shop: arbiter",
            "shop: fork server 1",
            "shop: worker 0",
            "shop: worker 1",
        ]
        forkserver = tree.forkserver
        assert tree.stop(signal.SIGTERM) == 0
    ended = list(map(int, (tmp_path / "at-end").read_text().split()))
    assert sorted(ended) == sorted([*workers, forkserver])


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()


def test_the_arbiter_does_not_import_the_application(tmp_path: Path) -> None:
    deploy(tmp_path, more=HOOKS)
    with serve(tmp_path, "--workers", 2, target="app:server") as tree:
        tree.reload()
        tree.until_ready(2, generation=2)
        imported = {pid for text, pid in notes(tmp_path) if text == "import"}
        assert len(imported) == 2
        assert tree.pid not in imported
        assert str(tmp_path) not in Path(f"/proc/{tree.pid}/maps").read_text()


def test_each_event_loop(tmp_path: Path) -> None:
    deploy(tmp_path)
    for loop, module in (("asyncio", "asyncio"), ("uvloop", "uvloop")):
        with serve(tmp_path, "--event-loop", loop) as tree:
            kind = tree.ask("type(asyncio.get_running_loop()).__module__")
            assert kind.partition(".")[0] == module
            deploy(tmp_path, 2)
            tree.reload()
            assert tree.who().version == 2
            with tree.client() as busy:
                busy.send(f"until({str(tmp_path / loop)!r})")
                tree.who()
                tree.send(signal.SIGTERM)
                tree.wait_for("stopping gracefully")
                (tmp_path / loop).touch()
                assert busy.receive()
            assert tree.wait() == 0
        write(tmp_path / "app.py", (tmp_path / "app.py").read_text())


def test_log_levels(tmp_path: Path) -> None:
    with serve(tmp_path, "--log-level", "debug", listens=1) as tree:
        assert tree.ask("__import__('logging').getLogger('pulsar').level") == logging.DEBUG


# An application without sockets, whose own methods are called in a script.
PLAIN = """
import os, sys, threading
from pulsar import Application, get_actor

def note(text):
    with open("notes", "a") as notes:
        notes.write(f"{text} {os.getpid()}\\n")

class Plain(Application):
    async def monitor_start(self, monitor):
        note(f"monitor_start {monitor.name} {get_actor() is monitor}")
        if "fail" in sys.argv:
            raise RuntimeError("it cannot start")

    async def monitor_stop(self, monitor):
        note(f"monitor_stop {monitor.name}")

    async def worker_start(self, worker, exc=None):
        note(f"worker_start {worker.slot} {get_actor() is worker}")

    async def worker_stop(self, worker, timeout):
        note(f"worker_stop {worker.slot}")

def started(app, exc=None):
    note("start")
    if "stop" in sys.argv:
        threading.Thread(target=app.stop).start()

if __name__ == "__main__":
    plain = Plain(name="plain", load_config=False, workers=2)
    plain.bind_event("start", started)
    plain.bind_event("stop", lambda app, exc=None: note("stop"))
    plain.start()
"""


def test_an_application_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    with Tree("plain.py", "stop", cwd=tmp_path, listens=0) as tree:
        assert tree.wait() == 0
        assert "plain is running" in tree.stderr
        found = notes(tmp_path)
        here = [text for text, pid in found if pid == tree.pid]
        assert here == ["monitor_start plain True", "start", "monitor_stop plain", "stop"]
        there = sorted(text for text, pid in found if pid != tree.pid)
        assert there == [
            "worker_start 0 True",
            "worker_start 1 True",
            "worker_stop 0",
            "worker_stop 1",
        ]
        # Those who work end before the one who leads.
        texts = [text for text, _ in found]
        assert texts.index("monitor_stop plain") > max(map(texts.index, there))


def test_an_application_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    code, said = run_to_end("plain.py", "fail", cwd=tmp_path)
    assert code == 3
    assert said.count("RuntimeError: it cannot start") == 1
    assert not [text for text, _ in notes(tmp_path) if text.startswith("worker")]
