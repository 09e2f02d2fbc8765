"""The way of messages through a tree of loops, and what becomes of those whose addressee goes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pulsar.actors.actor import Actor
from pulsar.actors.hosts import connect_router
from pulsar.actors.mailbox import Mailbox, mailbox_pair
from pulsar.actors.message import Message, Note
from pulsar.actors.proxy import ActorProxy
from pulsar.actors.router import Router
from pulsar.errors import ActorError, ActorGone, CommandNotFound

Run = Callable[..., Any]


class Tree:
    """Actors, each with a router of its own, as if each lived in a process of its own."""

    def __init__(self) -> None:
        self.root = Actor("root", aid="root")
        self.lives: list[asyncio.Task[None]] = [asyncio.create_task(self.root.run())]
        # From each actor to the one above it.
        self.uplinks: dict[str, Mailbox] = {}
        self.downlinks: dict[str, Mailbox] = {}

    async def add(self, name: str, above: Actor | None = None, aid: str | None = None) -> Actor:
        """An actor below ``above``; returns when everybody knows it."""
        above = above or self.root
        actor = Actor(name, aid=aid)
        ours, theirs = mailbox_pair()

        def received(box: Mailbox, message: Message, descriptors: list[int]) -> None:
            if isinstance(message, Note):
                above.router.noted(box, message)
            else:
                above.router.receive(box, message)

        self.downlinks[actor.aid] = Mailbox(ours, received, above.router.unlink)
        self.uplinks[actor.aid] = connect_router(actor, theirs)
        self.lives.append(asyncio.create_task(actor.run()))
        await until(lambda: actor.aid in self.root.router.below)
        return actor

    async def cut(self, actor: Actor) -> None:
        """End the connection, as the end of its process does."""
        self.uplinks[actor.aid].close()
        await asyncio.sleep(0)

    async def close(self) -> None:
        for box in (*self.uplinks.values(), *self.downlinks.values()):
            box.close()
        self.root.stop()
        await asyncio.gather(*self.lives)


@asynccontextmanager
async def tree() -> AsyncIterator[Tree]:
    found = Tree()
    try:
        yield found
    finally:
        await found.close()


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def name_of(actor: Actor) -> str:
    return actor.name


async def never(actor: Actor) -> None:
    actor.extra["asked"] = actor.extra.get("asked", 0) + 1
    await asyncio.Event().wait()


def asked(actor: Actor, count: int = 1) -> Callable[[], bool]:
    return lambda: actor.extra.get("asked", 0) >= count


def test_everybody_reaches_everybody(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one = await t.add("one")
            other = await t.add("other")
            deep = await t.add("deep", one)
            deeper = await t.add("deeper", deep)
            everybody = [t.root, one, other, deep, deeper]
            for sender in everybody:
                for target in everybody:
                    for called in (target, target.proxy, target.name, target.aid):
                        assert await sender.send(called, "run", name_of) == target.name
                with pytest.raises(ActorGone, match="no actor is called 'nobody'"):
                    await sender.send("nobody", "ping")
                with pytest.raises(CommandNotFound):
                    await sender.send(deeper, "pign")

    run(main())


def test_answers_come_to_those_who_have_asked(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            deep = await t.add("deep", one)
            sends = [
                sender.send(target, "echo", (sender.name, target.name, number))
                for number in range(300)
                for sender in (t.root, one, other, deep)
                for target in (t.root, one, other, deep)
            ]
            answers = await asyncio.gather(*sends)
            assert len(answers) == 4800
            assert answers[:2] == [("root", "root", 0), ("root", "one", 0)]
            assert len(set(answers)) == 4800

    run(main())


def test_messages_of_one_sender_stay_in_order(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            for number in range(500):
                one.send(other, "notify", number)
            await one.send(other, "ping")
            assert other.notices == {one.aid: 499}

    run(main())


# Names


def test_the_newest_of_a_name_is_meant_and_ids_are_their_own(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            asker = await t.add("asker")
            old = await t.add("worker")
            assert await asker.send("worker", "run", aid_of) == old.aid
            # Its successor is there before it has gone.
            new = await t.add("worker")
            assert await asker.send("worker", "run", aid_of) == new.aid
            assert await asker.send(old.aid, "run", aid_of) == old.aid
            await t.cut(old)
            await until(lambda: old.aid not in t.root.router.below)
            assert await asker.send("worker", "run", aid_of) == new.aid
            with pytest.raises(ActorGone):
                await asker.send(old, "ping")
            await t.cut(new)
            await until(lambda: new.aid not in t.root.router.below)
            with pytest.raises(ActorGone):
                await asker.send("worker", "ping")

    run(main())


def aid_of(actor: Actor) -> str:
    return actor.aid


# Ends


@pytest.mark.parametrize("how", ["cut", "stop"])
def test_a_request_under_way_fails_when_its_addressee_goes(run: Run, how: str) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            deep = await t.add("deep", other)
            waiting = [sender.send(deep, "run", never) for sender in (t.root, one, other)]
            await until(asked(deep, 3))
            if how == "cut":
                await t.cut(deep)
            else:
                await one.send(deep, "stop")
            for each in waiting:
                with pytest.raises(ActorGone, match="meanwhile"):
                    await each
            await until(lambda: deep.aid not in t.root.router.below)
            assert t.root.router._under_way == other.router._under_way == {}
            assert await one.send(other, "ping") == "pong"

    run(main())


def test_those_behind_a_lost_mailbox_are_lost_as_well(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            deep = await t.add("deep", other)
            waiting = one.send(deep, "run", never)
            await until(asked(deep))
            await t.cut(other)
            with pytest.raises(ActorGone):
                await waiting
            await until(lambda: not {other.aid, deep.aid} & t.root.router.below.keys())
            for target in (other, deep, "deep"):
                with pytest.raises(ActorGone):
                    await one.send(target, "ping")

    run(main())


def test_without_the_arbiter_nothing_is_waited_for(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            waiting = one.send(other, "run", never)
            await until(asked(other))
            t.downlinks[one.aid].close()
            with pytest.raises(ActorGone, match="the arbiter has gone"):
                await waiting
            # By then it has stopped.
            await until(lambda: not one.running)

    run(main())


def test_an_asker_that_goes_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            waiting = one.send(other, "run", never)
            await until(asked(other))
            assert t.root.router._under_way
            await t.cut(one)
            with pytest.raises(ActorGone):
                await waiting
            await until(lambda: not t.root.router._under_way)
            assert await t.root.send(other, "ping") == "pong"

    run(main())


def test_an_asker_that_waits_no_more(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            task = one.send(other, "run", never)
            await until(asked(other))
            task.cancel()
            await asyncio.wait([task])
            assert one.router._waiting == {}
            assert await one.send(other, "ping") == "pong"

    run(main())


def test_a_command_of_an_actor_in_the_askers_loop_ends_with_it(run: Run) -> None:
    async def main() -> None:
        router = Router()
        one, other = Actor("one", router=router), Actor("other", router=router)
        lives = [asyncio.create_task(actor.run()) for actor in (one, other)]
        await until(lambda: one.running and other.running)
        waiting = one.send(other, "run", never)
        await until(asked(other))
        await one.send(other, "stop")
        with pytest.raises(ActorGone, match="meanwhile"):
            await waiting
        one.stop()
        await asyncio.gather(*lives)
        assert router.actors == {}

    run(main())


# Errors


def test_what_cannot_be_sent_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one = await t.add("one")
            with pytest.raises(ActorError, match="must be picklable"):
                await t.root.send(one, "echo", lambda: 1)
            with pytest.raises(ActorError, match="must be picklable"):
                await t.root.send(one, "run", unsendable)
            assert t.root.router._waiting == t.root.router._under_way == {}
            assert await t.root.send(one, "ping") == "pong"

    run(main())


def test_what_is_too_large_is_refused_on_both_ways(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with tree() as t:
            one = await t.add("one")
            monkeypatch.setattr("pulsar.actors.message.MAX_PAYLOAD", 10_000)
            with pytest.raises(ActorError, match="at most 10000 are allowed"):
                await t.root.send(one, "echo", bytes(10_000))
            with pytest.raises(ActorError, match="at most 10000 are allowed"):
                await t.root.send(one, "run", much)
            assert await t.root.send(one, "ping") == "pong"

    run(main())


def much(actor: Actor) -> bytes:
    return bytes(10_000)


def unsendable(actor: Actor) -> Any:
    return lambda: 1


def test_an_error_that_nobody_waits_for_is_logged(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with tree() as t:
            one = await t.add("one")
            await t.root.send(one, "notify")  # what to tell is missing
            assert await t.root.send(one, "ping") == "pong"
            await one.send("nobody", "notify", 1)
            assert await one.send(t.root, "ping") == "pong"

    run(main())
    assert "command notify of one failed" in caplog.text
    assert caplog.text.count("Traceback") == 1


def test_the_caller_is_told_apart(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            await one.send(other, "notify", "news")
            await one.send(other, "ping")
            assert other.notices == {one.aid: "news"}
            assert ActorProxy(one.aid) == one.proxy

    run(main())


# Back-pressure


def test_many_commands_at_once(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, other = await t.add("one"), await t.add("other")
            # Each of them waits for an answer that comes the same way.
            asks = [one.send(other, "run", ask_back) for _ in range(3000)]
            assert await asyncio.gather(*asks) == ["pong"] * 3000

    run(main())


async def ask_back(actor: Actor) -> Any:
    return await actor.send("one", "ping")


def test_an_addressee_that_does_not_read_holds_up_its_senders_alone(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, deaf, other = await t.add("one"), await t.add("deaf"), await t.add("other")
            t.uplinks[deaf.aid].hold()

            async def flood() -> None:
                for _ in range(100):
                    await one.send(deaf, "notify", bytes(2**16))

            flooding = asyncio.create_task(flood())
            await until(lambda: t.downlinks[one.aid].held)
            assert t.downlinks[deaf.aid]._queued < 2**20
            assert await other.send(t.root, "ping") == "pong"
            assert not flooding.done()
            t.uplinks[deaf.aid].let_go()
            await flooding
            assert await one.send(deaf, "ping") == "pong"
            assert len(deaf.notices[one.aid]) == 2**16

    run(main())


def test_senders_are_let_go_when_the_addressee_is_lost(run: Run) -> None:
    async def main() -> None:
        async with tree() as t:
            one, deaf = await t.add("one"), await t.add("deaf")
            t.uplinks[deaf.aid].hold()

            async def flood() -> None:
                for _ in range(100):
                    await one.send(deaf, "notify", bytes(2**16))

            flooding = asyncio.create_task(flood())
            await until(lambda: t.downlinks[one.aid].held)
            await t.cut(deaf)
            await flooding
            assert await one.send(t.root, "ping") == "pong"

    run(main())
