"""Actors in scripts and in workers: spawned, asked, ended, wherever they live."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.tree import Tree, deploy, descendants, run_to_end, serve, until

SCRIPT = Path(__file__).with_name("actors_script.py")


@pytest.mark.parametrize(
    ("story", "logged"),
    [
        ("talk-process", 0),
        ("talk-thread", 0),
        ("talk-loop", 0),
        ("errors", 0),
        ("killed", 0),
        ("neighbours", 0),
        # Each actor whose start hook fails says so.
        ("hooks", 3),
        ("cannot-start", 0),
        ("pressure", 0),
        ("crowd", 0),
    ],
)
def test_a_story(tmp_path: Path, story: str, logged: int) -> None:
    code, said = run_to_end(SCRIPT, story, cwd=tmp_path)
    assert (code, said.count("the end\n"), said.count("Traceback")) == (0, 1, logged), said
    assert "never retrieved" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_a_signal_ends_everybody(tmp_path: Path, number: signal.Signals) -> None:
    with Tree(SCRIPT, "serve", cwd=tmp_path, listens=0) as tree:
        tree.wait_for("all are there")
        tree.seen = descendants(tree.pid)
        assert len(tree.seen) == 2
        assert tree.stop(number) == (-number if number == signal.SIGKILL else 0)
        assert "Traceback" not in tree.stderr


def test_what_the_arbiter_cannot_do_it_says(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import asyncio, sys\n"
        "from pulsar import arbiter, get_actor, send, spawn\n"
        "from pulsar.errors import ActorError\n"
        "assert get_actor() is None\n"
        "for call in (lambda: send('arbiter', 'ping'), lambda: asyncio.run(spawn())):\n"
        "    try:\n"
        "        call()\n"
        "    except ActorError as exc:\n"
        "        assert 'no actor runs here' in str(exc), exc\n"
        "    else:\n"
        "        raise AssertionError\n"
        "async def main():\n"
        "    arbiter().start()\n"
        "try:\n"
        "    asyncio.run(main())\n"
        "except RuntimeError as exc:\n"
        "    assert 'an event loop runs here' in str(exc)\n"
        "else:\n"
        "    raise AssertionError\n"
        "def stop(root, exc=None):\n"
        "    root.stop()\n"
        "arbiter(start=stop).start()\n"
        "assert get_actor() is None\n"
        "sys.stderr.write('the end')\n"
    )
    code, said = run_to_end("script.py", cwd=tmp_path)
    assert (code, said.splitlines()[-1], "Traceback" in said) == (0, "the end", False), said


# In workers

WORKER = """
from pulsar import arbiter, command, get_actor, send, spawn
from pulsar.errors import ActorError, CommandNotFound, PulsarException

with open("imported", "a") as file:
    file.write(f"{os.getpid()}\\n")

@command()
def version(request):
    return VERSION, request.actor.slot

def pid_of(actor):
    return os.getpid()

async def asked(*arguments):
    return await send(*arguments)

async def error(awaitable):
    try:
        await awaitable
    except PulsarException as exc:
        return type(exc).__name__, str(exc)

async def pid_of_spawned(concurrency):
    proxy = await spawn(concurrency=concurrency)
    try:
        return await send(proxy, "run", pid_of)
    finally:
        await send(proxy, "stop")
"""


def test_workers_are_actors(tmp_path: Path) -> None:
    deploy(tmp_path, more=WORKER)
    with serve(tmp_path, "--workers", 2) as tree:
        workers = tree.workers()
        with tree.client_of(workers[0]) as client:
            assert client.ask("(get_actor().slot, get_actor().generation)") == (0, 1)
            assert client.ask("get_actor().name") == "app:App.0"
            assert client.ask("asked('app:App.1', 'version')") == (1, 1)
            assert client.ask("asked('app:App.1', 'run', pid_of)") == workers[1]
            assert client.ask("asked('app:App.0', 'run', pid_of)") == workers[0]
            assert client.ask("asked('arbiter', 'ping')") == "pong"
            info = client.ask("asked('arbiter', 'info')")
            assert info["pid"] == tree.pid
            assert [slot["pid"] for slot in info["applications"][0]["slots"]] == workers
            assert client.ask("asked('app:App', 'info')")["ready"] == 2
            spawned = {client.ask(f"pid_of_spawned({where!r})") for where in ("thread", "loop")}
            assert spawned == {workers[0]}
            assert client.ask("pid_of_spawned('process')") not in {tree.pid, *workers}
            # The arbiter has not got the application's code, and will not.
            kind, text = client.ask("error(asked('arbiter', 'run', pid_of))")
            assert kind == "ActorError"
            assert "app.pid_of is part of it: send it to a worker" in text
            kind, text = client.ask("error(asked('arbiter', 'version'))")
            assert kind == "CommandNotFound"
            assert client.ask("error(asked('app:App.7', 'ping'))")[0] == "ActorGone"
        imported = set(map(int, (tmp_path / "imported").read_text().split()))
        assert imported == {tree.forkserver}
        # One that ends by order of another one is replaced first.
        with tree.client_of(workers[1]) as client:
            assert client.ask("asked('app:App.0', 'stop')") is None
        tree.wait_for(f"({workers[0]}) is replaced: it was asked to stop")
        until(lambda: tree.workers()[0] != workers[0], "it is replaced")
        assert tree.until_ready(2).applications[0].restarts == 0
        assert tree.stop() == 0


def test_a_worker_stops_the_tree(tmp_path: Path) -> None:
    deploy(tmp_path, more=WORKER)
    with serve(tmp_path, "--workers", 2) as tree:
        tree.until_ready(2)
        assert tree.ask("asked('arbiter', 'stop')") is None
        assert tree.wait() == 0


def test_spawned_processes_survive_a_reload(tmp_path: Path) -> None:
    deploy(
        tmp_path,
        more=WORKER + "async def keep():\n"
        "    await spawn('kept')\n"
        "    return await send('kept', 'version')\n",
    )
    with serve(tmp_path) as tree:
        assert tree.ask("keep()") == (1, None)
        deploy(tmp_path, 2, more=WORKER)
        tree.reload()
        until(lambda: tree.who().version == 2, "the new code serves")
        # It runs the code with which it was made.
        assert tree.ask("asked('kept', 'version')") == (1, None)
        pid = tree.ask("asked('kept', 'run', pid_of)")
        assert tree.ask("asked('arbiter', 'kill_actor', 'kept')").startswith("kept")
        assert tree.ask("error(asked('kept', 'ping'))")[0] == "ActorGone"
        assert not os.path.exists(f"/proc/{pid}")
        tree.until_ready(1, generation=2)
        assert tree.stop() == 0
