"""The registry of commands, and those that every actor knows."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pulsar.actors import commands
from pulsar.actors.actor import Actor
from pulsar.actors.commands import CommandRequest, command, find_command, run_command, wants_answer
from pulsar.actors.proxy import ActorProxy
from pulsar.errors import ActorGone, CommandNotFound

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_commands", dict(commands._commands))


def asked(name: str, *args: Any, actor: Actor | None = None, **kwargs: Any) -> Any:
    request = CommandRequest(actor or Actor("anna"), ActorProxy("caller"), name)
    return run_command(request, args, kwargs)


def test_functions_become_commands(run: Run) -> None:
    @command()
    def join(request: CommandRequest, *words: str, by: str = " ") -> str:
        return by.join([request.command, *words])

    @command(name="late", ack=False)
    async def other(request: CommandRequest) -> str:
        await asyncio.sleep(0)
        return request.caller.aid

    async def main() -> None:
        assert await asked("join", "a", "b", by="-") == "join-a-b"
        assert await asked("late") == "caller"

    run(main())
    # They are still functions.
    assert join(CommandRequest(Actor(), ActorProxy("me"), "join"), "x") == "join x"
    assert (find_command("join").ack, find_command("late").ack) == (True, False)
    assert (wants_answer("join"), wants_answer("late"), wants_answer("unheard of")) == (
        True,
        False,
        True,
    )


def test_the_last_of_a_name_counts() -> None:
    @command(name="twice")
    def one(request: CommandRequest) -> None: ...

    @command(name="twice")
    def other(request: CommandRequest) -> None: ...

    assert find_command("twice").function is other


def test_an_unknown_command_is_compared_with_known_ones() -> None:
    with pytest.raises(CommandNotFound, match=r"no command 'ehco'; did you mean 'echo'\?"):
        find_command("ehco")
    with pytest.raises(CommandNotFound, match=r"no command 'xyzzy'$"):
        find_command("xyzzy")


def test_what_every_actor_knows(run: Run) -> None:
    async def main() -> None:
        anna = Actor("anna", params={"colour": "red"})
        assert await asked("ping") == "pong"
        assert await asked("echo", {"a": 1}) == {"a": 1}
        assert (await asked("info", actor=anna))["name"] == "anna"
        assert await asked("run", lambda actor, one, other: (actor.name, one, other), 1, other=2)
        assert await asked("notify", {"mood": "good"}, actor=anna) is None
        assert anna.notices == {"caller": {"mood": "good"}}

        async def later(actor: Actor) -> str:
            await asyncio.sleep(0)
            return actor.name

        assert await asked("run", later) == "anna"
        with pytest.raises(ActorGone, match="anna has nobody below it who is called 'bert'"):
            await asked("kill_actor", "bert")
        with pytest.raises(TypeError):
            await asked("echo")

    run(main())


def test_stop_ends_an_actor(run: Run) -> None:
    async def main() -> None:
        anna = Actor("anna")
        life = asyncio.create_task(anna.run())
        while not anna.running:
            await asyncio.sleep(0)
        assert await asked("stop", actor=anna) is None
        await life

    run(main())
