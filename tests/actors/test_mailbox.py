"""Mailboxes over real socket pairs: order, descriptors, back-pressure, and their ends."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pulsar.actors.mailbox import Mailbox, mailbox_pair, new_framer
from pulsar.actors.message import Message, Note, Request, encode
from pulsar.errors import ActorGone
from tests.support import loops

Run = Callable[..., Any]


class End:
    """A mailbox that keeps what comes."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[Message] = []
        self.descriptors: list[int] = []
        self.lost = 0
        self.changed = asyncio.Event()
        self.box = Mailbox(sock, self.received, self.gone)

    def received(self, box: Mailbox, message: Message, descriptors: list[int]) -> None:
        assert box is self.box
        self.messages.append(message)
        self.descriptors += descriptors
        self.changed.set()

    def gone(self, box: Mailbox) -> None:
        self.lost += 1
        self.changed.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def until_received(self, count: int) -> None:
        await self.until(lambda: len(self.messages) >= count)


@contextmanager
def ends() -> Iterator[tuple[End, End]]:
    one, other = map(End, mailbox_pair())
    try:
        yield one, other
    finally:
        for end in (one, other):
            end.box.close()
            for descriptor in end.descriptors:
                os.close(descriptor)


def request(number: int, size: int = 0) -> Request:
    return Request(number, "me", "you", "echo", b"x" * size)


async def sent(box: Mailbox, *messages: Message) -> None:
    for message in messages:
        await box.send(message)


def test_messages_arrive_in_order_both_ways(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            texts = [request(number, number % 700) for number in range(1000)]
            await asyncio.gather(sent(one.box, *texts), sent(other.box, *texts))
            await asyncio.gather(one.until_received(1000), other.until_received(1000))
            assert one.messages == other.messages == texts

    run(main())


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**20, 2**24])
def test_messages_of_any_size(run: Run, size: int) -> None:
    async def main() -> None:
        with ends() as (one, other):
            await one.box.send(request(1, size))
            await other.until_received(1)
            assert other.messages == [request(1, size)]
            assert not one.box.full

    run(main())


# Descriptors


def test_descriptors_travel_with_their_notes(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            readers = []
            for number in range(300):
                reader, writer = os.pipe()
                readers.append(reader)
                os.write(writer, b"%d" % number)
                # Behind something large: what is written in parts keeps its descriptors.
                one.box.post(request(number, 5000))
                one.box.post(Note("take", {"number": number}), [reader, writer])
                os.close(writer)
            for reader in readers:
                os.close(reader)
            await other.until_received(600)
            notes = [message for message in other.messages if isinstance(message, Note)]
            assert [note.data["number"] for note in notes] == list(range(300))
            assert len(other.descriptors) == 600
            for number, reader in enumerate(other.descriptors[::2]):
                assert os.read(reader, 10) == b"%d" % number
                assert not os.get_inheritable(reader)

    run(main())


def test_as_many_as_the_kernel_takes_and_no_more(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            one.box.post(Note("many"), [0] * 253)
            await other.until_received(1)
            assert len(other.descriptors) == 253
            with pytest.raises(ValueError, match="at most 253 descriptors"):
                one.box.post(Note("more"), [0] * 254)

    run(main())


def test_descriptors_that_nobody_has_taken_are_closed(run: Run) -> None:
    async def main() -> None:
        one, theirs = mailbox_pair()
        box = Mailbox(one, lambda *_: None, lambda _: None)
        # Of a message that is not complete, and written behind one that waits.
        frame = new_framer().encode(encode(Note("take", {}, 1)))
        socket.send_fds(theirs, [frame[:5]], [0])
        await asyncio.sleep(0)
        theirs.setblocking(False)
        box.post(request(1, 2**22))
        box.post(Note("take"), [0, 0])
        assert box.full
        box.close()
        box.close()
        theirs.close()

    run(main())


# Back-pressure


def test_who_sends_too_fast_waits(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            other.box.hold()
            flood = asyncio.create_task(sent(one.box, *(request(n, 2**16) for n in range(200))))
            while not one.box.full:
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not flood.done()
            # One message above the mark, at most.
            assert one.box._queued < 2**18 + 2**17
            other.box.let_go()
            await flood
            await other.until_received(200)
            assert [message.id for message in other.messages] == list(range(200))  # type: ignore[union-attr]

    run(main())


def test_who_passes_on_holds_the_source_until_there_is_room(run: Run) -> None:
    async def main() -> None:
        with ends() as (source, arrives), ends() as (leaves, target):
            target.box.hold()

            def pass_on(box: Mailbox, message: Message, descriptors: list[int]) -> None:
                leaves.box.post(message)
                if leaves.box.full:
                    leaves.box.hold_until_drained(arrives.box)

            arrives.box._received = pass_on
            flood = asyncio.create_task(sent(source.box, *(request(n, 2**16) for n in range(200))))
            while not (arrives.box.held and source.box._waiters):
                await asyncio.sleep(0.001)
            # What one read has brought is there already.
            assert leaves.box._queued < 2**20
            target.box.let_go()
            await flood
            await target.until_received(200)
            assert [message.id for message in target.messages] == list(range(200))  # type: ignore[union-attr]
            assert not arrives.box.held

    run(main())


def test_held_twice(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            other.box.hold()
            other.box.hold()
            one.box.post(request(1))
            other.box.let_go()
            assert other.box.held
            for _ in range(5):
                await asyncio.sleep(0)
            assert other.messages == []
            heard = other.box.heard
            other.box.let_go()
            # It was silent because nobody listened.
            assert other.box.heard >= heard
            await other.until_received(1)

    run(main())


def test_a_source_is_let_go_when_the_target_is_lost(run: Run) -> None:
    async def main() -> None:
        with ends() as (source, arrives), ends() as (leaves, target):
            leaves.box.hold_until_drained(arrives.box)
            assert arrives.box.held
            target.box.close()
            await leaves.until(lambda: leaves.lost)
            assert not arrives.box.held
            await source.box.send(request(1))
            await arrives.until_received(1)

    run(main())


# The end


def test_the_other_end_is_gone(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            for number in range(10):
                one.box.post(request(number))
            one.box.close()
            assert one.lost == 1
            # What was written before arrives.
            await other.until(lambda: other.lost)
            assert len(other.messages) == 10
            assert (other.lost, other.box.closed) == (1, True)
            other.box.post(request(1))
            with pytest.raises(ActorGone):
                await other.box.send(request(1))

    run(main())


def test_those_who_wait_for_room_are_told(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            other.box.hold()
            floods = [
                asyncio.create_task(sent(one.box, *(request(n, 2**16) for n in range(50))))
                for _ in range(3)
            ]
            while not one.box.full:
                await asyncio.sleep(0)
            other.box.close()
            for flood in floods:
                with pytest.raises(ActorGone):
                    await flood
            await one.until(lambda: one.lost)
            assert one.lost == 1

    run(main())


def test_last_words_are_read_before_the_mailbox_is_closed(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            other.box.hold()
            for number in range(100):
                one.box.post(request(number, 100))
            one.box.close()
            other.box.read_rest()
            assert len(other.messages) == 100
            assert other.box.closed

    run(main())


def test_flush_waits_until_all_is_written(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):
            for number in range(50):
                one.box.post(request(number, 2**16))
            await one.box.flush(10)
            assert one.box._queued == 0
            one.box.close()
            await other.until(lambda: other.lost)
            assert len(other.messages) == 50
        with ends() as (one, other):
            other.box.hold()
            for number in range(50):
                one.box.post(request(number, 2**16))
            await one.box.flush(0.05)
            assert one.box._queued > 0

    run(main())


@pytest.mark.parametrize("junk", [b"\0\0\0\1\xff", b"\xff\xff\xff\xff", b"\0\0\0\2\x91\x07"])
def test_what_nobody_understands_closes_the_mailbox(
    run: Run, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        ours, theirs = mailbox_pair()
        with theirs:
            end = End(ours)
            theirs.sendall(junk)
            await end.until(lambda: end.lost)
            assert end.box.closed

    run(main())
    assert "it has received what it cannot understand" in caplog.text


def test_closed_while_a_message_is_received(run: Run) -> None:
    async def main() -> None:
        with ends() as (one, other):

            def close(box: Mailbox, message: Message, descriptors: list[int]) -> None:
                other.messages.append(message)
                other.descriptors += descriptors
                box.close()

            other.box._received = close
            for _ in range(5):
                one.box.post(Note("take"), [0])
            await other.until(lambda: other.lost)
            assert len(other.messages) == 1

    run(main())


def test_a_forked_copy_is_forgotten_without_a_word(run: Run) -> None:
    async def main() -> None:
        ours, theirs = mailbox_pair()
        with theirs:
            end = End(ours)
            end.box.hold()
            end.box.detach()
            assert (end.box.closed, end.lost) == (True, 0)

    run(main())


def test_between_two_threads(run: Run, loop_kind: str) -> None:
    ours, theirs = mailbox_pair()

    async def answer() -> None:
        def received(box: Mailbox, message: Message, descriptors: list[int]) -> None:
            box.post(message)

        lost = asyncio.Event()
        Mailbox(theirs, received, lambda _: lost.set())
        await lost.wait()

    async def main() -> None:
        end = End(ours)
        texts = [request(number, 1000) for number in range(500)]
        await sent(end.box, *texts)
        await end.until_received(500)
        assert end.messages == texts
        end.box.close()

    thread = threading.Thread(target=lambda: loops.run(answer(), loop=loop_kind))
    thread.start()
    try:
        run(main())
    finally:
        thread.join()
