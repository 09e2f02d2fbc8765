"""Fork servers from outside: how the next one is started, what it says, and how it ends."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pulsar.actors import generation
from pulsar.actors.generation import Generation, LoadFailed, inherited, is_fork_server, run_again
from pulsar.actors.mailbox import mailbox_pair, new_framer
from pulsar.actors.message import Note, decode, encode
from pulsar.errors import ReloadFailed

Run = Callable[..., Any]


class Seen:
    """What a generation has told."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.lost = 0

    def noted(self, _: Generation, note: Note) -> None:
        self.notes.append(note)

    def gone(self, _: Generation) -> None:
        self.lost += 1


# Run again


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Let ``run_again`` run a program; returns its directory."""

    def write(source: str) -> Path:
        (tmp_path / "program.py").write_text(source)
        return tmp_path

    monkeypatch.setattr(sys, "orig_argv", ["python", "program.py", "with", "words"])
    monkeypatch.setattr(generation, "_DIRECTORY", str(tmp_path))
    environment = {**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": "/x"}
    monkeypatch.setattr(generation, "_ENVIRONMENT", environment)
    return write


BECOMES = """
import os, subprocess, sys
from pulsar.actors.generation import inherited, is_fork_server
from pulsar.actors.mailbox import new_framer
from pulsar.actors.message import Note, encode
assert is_fork_server()
given = inherited()
assert not is_fork_server() and inherited() is None
NOT_FOR_OTHERS = ("LISTEN_FDS", "NOTIFY_SOCKET", "_PULSAR_GENERATION")
def tell(name, **data):
    given.control.sendall(new_framer().encode(encode(Note(name, data))))
"""


@contextlib.contextmanager
def started(seen: Seen, number: int = 2) -> Iterator[Generation]:
    sock, pid, errors = run_again(number)
    made = Generation(number, sock, pid, seen.noted, seen.gone, errors)
    try:
        yield made
    finally:
        made.kill()
        made.reap()
        made.close()


def test_the_command_line_is_run_again(
    run: Run, program: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    directory = program(
        BECOMES + "sys.stderr.write('loading\\n'); sys.stderr.flush()\n"
        "tell('loaded', generation=given.generation, argv=sys.argv, cwd=os.getcwd(),\n"
        "     names=[name for name in os.environ if name in NOT_FOR_OTHERS],\n"
        "     inheritable=list(map(os.get_inheritable, (given.control.fileno(), given.stderr))))\n"
        "os.dup2(given.stderr, 2); os.close(given.stderr)\n"
        "sys.stderr.write('serving\\n'); sys.stderr.flush()\n"
        "tell('forked', pid=7)\n"
        "given.control.recv(100)\n"
    )

    async def main() -> None:
        seen = Seen()
        with started(seen) as made:
            report = await made.wait_until_loaded(20)
            assert report == made.report
            assert report == {
                "generation": 2,
                "argv": ["program.py", "with", "words"],
                "cwd": str(directory),
                "names": [],
                "inheritable": [False, False],
            }
            while not seen.notes:
                await asyncio.sleep(0.001)
            assert seen.notes == [Note("forked", {"pid": 7})]
            assert made.title == f"fork server 2 ({made.pid})"
            made.end()
            while not seen.lost:
                await asyncio.sleep(0.001)
            made.reap()
            assert (made.alive, seen.lost) == (False, 1)
            # Again, of one that is gone: nothing happens.
            made.kill()
            made.reap()

    run(main())
    # What it says from then on takes no detour.
    assert sorted(capfd.readouterr().err.splitlines()) == ["loading", "serving"]


@pytest.mark.parametrize(
    ("source", "code", "text", "said"),
    [
        (
            "import sys; sys.stderr.write('no disk\\n')\nraise SystemExit(1)",
            3,
            "no disk",
            True,
        ),
        ("raise OSError('no disk')", 3, "OSError: no disk", True),
        ("import os; os._exit(5)", 3, "exited with code 5", False),
        (
            "import os; os.kill(os.getpid(), 9)",
            3,
            "killed by SIGKILL, perhaps out of memory",
            False,
        ),
        (
            BECOMES + "tell('failed', text='bad: sentence', code=4, said=False)\n",
            4,
            "bad: sentence",
            False,
        ),
        (
            BECOMES + "print('Traceback: bad', file=sys.stderr)\n"
            "tell('failed', text='Traceback: bad', code=4, said=True)\n",
            4,
            "Traceback: bad",
            True,
        ),
        ("this is no program", 3, "SyntaxError", True),
    ],
)
def test_why_it_has_failed(
    run: Run,
    program: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
    source: str,
    code: int,
    text: str,
    said: bool,
) -> None:
    program(source)

    async def main() -> None:
        seen = Seen()
        with started(seen) as made:
            with pytest.raises(LoadFailed) as caught:
                await made.wait_until_loaded(20)
            assert (caught.value.code, caught.value.said) == (code, said)
            assert str(caught.value).count(text) == 1
            assert isinstance(caught.value, ReloadFailed)

    run(main())
    # Whatever it has written itself, the operator reads too.
    assert capfd.readouterr().err.count(text) == said


def test_one_that_takes_too_long_is_killed(run: Run, program: Callable[[str], Path]) -> None:
    program("import time\ntime.sleep(1000)")

    async def main() -> None:
        with started(Seen()) as made:
            with pytest.raises(LoadFailed, match=r"longer than 0\.1 s \(boot_timeout\)"):
                await made.wait_until_loaded(0.1)
            made.reap()
            assert made._status is not None
            assert os.WTERMSIG(made._status) == signal.SIGKILL

    run(main())


def test_one_that_hangs_up_and_does_not_end_is_ended(
    run: Run, program: Callable[[str], Path]
) -> None:
    # As code does that closes what it does not know, to become a daemon.
    program("import os, time\nos.closerange(3, 100)\ntime.sleep(1000)")

    async def main() -> None:
        with started(Seen()) as made, pytest.raises(LoadFailed, match="killed by SIGKILL"):
            await made.wait_until_loaded(20)

    run(main())


def test_a_flood_of_errors_is_cut(
    run: Run, program: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    program("import sys\nsys.stderr.write('x' * 500_000 + '\\nthe last line\\n')\nsys.exit(1)")

    async def main() -> None:
        with started(Seen()) as made:
            with pytest.raises(LoadFailed) as caught:
                await made.wait_until_loaded(20)
            assert str(caught.value).endswith("x\nthe last line")
            assert len(str(caught.value)) <= 64 * 1024

    run(main())
    assert len(capfd.readouterr().err) > 500_000


def test_a_program_that_is_gone(
    program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("")
    monkeypatch.setattr(sys, "executable", "/not/there/python")
    with pytest.raises(ReloadFailed, match="the program cannot be run again: "):
        run_again(2)


def test_who_is_none() -> None:
    assert not is_fork_server()
    assert inherited() is None


# Orders


def test_orders_and_descriptors(run: Run) -> None:
    async def main() -> None:
        ours, theirs = mailbox_pair()
        seen = Seen()
        with theirs:
            made = Generation(1, ours, os.getpid(), seen.noted, seen.gone)
            made.tell("spawn", {"aid": "a"}, 0, 1)
            made.tell("ready")
            framer, notes, descriptors = new_framer(), [], []
            while len(notes) < 2:
                data, came, _, _ = socket.recv_fds(theirs, 4096, 10)
                descriptors += came
                notes += [decode(frame) for frame in framer.feed(data)]
            for descriptor in descriptors:
                os.close(descriptor)
            assert notes == [Note("spawn", {"aid": "a"}, 2), Note("ready")]
            assert len(descriptors) == 2
            theirs.sendall(new_framer().encode(encode(Note("loaded", {"title": "shop"}))))
            assert await made.wait_until_loaded(0) == {"title": "shop"}
            made.close()
            assert seen.lost == 1

    run(main())


def test_the_directory_is_remembered_by_the_name_it_was_entered_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "current").symlink_to("1")
    monkeypatch.chdir(tmp_path / "current")
    for name, wanted in (
        (str(tmp_path / "current"), tmp_path / "current"),
        # Of somebody who was elsewhere, or nowhere.
        (str(tmp_path), tmp_path / "1"),
        (str(tmp_path / "gone"), tmp_path / "1"),
        ("", tmp_path / "1"),
    ):
        monkeypatch.setenv("PWD", name)
        assert generation._directory_of_start() == str(wanted)
