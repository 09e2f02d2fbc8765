"""Routing: which actor lives where, and how a message gets there and back.

Owns: ``Router``, one for each loop that actors live in.
Leaves: bytes to ``mailbox``, what a command does to ``commands``.

The loops form a tree: the arbiter's at the top, below it those of processes and
threads. A router knows the actors in its own loop and, by mailbox, everybody below
it; what is for somebody else goes up. The arbiter knows all, so a message takes at
most the way up and the way down. What is passed on is never opened.

Who has gone is noticed: a request that is under way to an actor whose mailbox is
lost fails at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any

from ..errors import ActorGone
from .commands import CommandRequest, run_command, wants_answer
from .mailbox import Mailbox
from .message import Answer, Message, Note, Request, pack, pack_error, raise_error, unpack
from .proxy import ActorProxy

if TYPE_CHECKING:
    from .actor import Actor

__all__ = ["Router"]

logger = logging.getLogger("pulsar.actors")

# Commands without an answer in progress in one loop above which nothing more is read from
# whoever sends them. Those with an answer are bounded by their askers, who wait for it.
_MANY_COMMANDS = 1000

# Seconds for which reading stops at most: what is in progress may itself wait for an
# answer that comes the same way.
_LONGEST_HOLD = 1.0


class Router:
    """Finds the way of messages for the actors of one loop.

    :param import_modules: see ``message.unpack``
    """

    def __init__(self, *, import_modules: bool = True) -> None:
        # By id; and the ids of those who have a name, the newest last.
        self.actors: dict[str, Actor] = {}
        self.below: dict[str, Mailbox] = {}
        self._named: dict[str, list[str]] = {}
        self.uplink: Mailbox | None = None
        self._import_modules = import_modules
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        # Requests on their way down: who asked, and to which mailbox they went.
        self._under_way: dict[tuple[str, int], Mailbox] = {}
        # Commands without an answer that are in progress.
        self._notices: set[asyncio.Task[None]] = set()
        self._holding: list[Mailbox] = []

    # Who lives where

    def add(self, actor: Actor) -> None:
        """``actor`` lives in this loop; those above hear of it."""
        self.actors[actor.aid] = actor
        self._name(actor.aid, actor.name)
        self._tell_above("here", actor.aid, actor.name)

    def remove(self, actor: Actor) -> None:
        """``actor`` has ended."""
        self.actors.pop(actor.aid, None)
        self._forget(actor.aid)
        self._tell_above("gone", actor.aid, actor.name)

    def link(self, mailbox: Mailbox, aid: str, name: str) -> None:
        """The actor ``aid`` lives behind ``mailbox``, below us."""
        self.below[aid] = mailbox
        self._name(aid, name)
        self._tell_above("here", aid, name)

    def unlink(self, mailbox: Mailbox) -> None:
        """``mailbox`` is lost, and everybody behind it: fail what is under way to them."""
        if mailbox is self.uplink:
            self.uplink = None
            waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                if not future.done():
                    future.set_exception(ActorGone("the arbiter has gone"))
            return
        gone = {aid for aid, box in self.below.items() if box is mailbox}
        for aid in gone:
            del self.below[aid]
            self._forget(aid)
            self._tell_above("gone", aid, aid)
        for (asker, number), box in list(self._under_way.items()):
            if box is mailbox:
                del self._under_way[asker, number]
                self._answer(
                    asker, number, False, pack_error(ActorGone("the actor has gone meanwhile"))
                )
            elif asker in gone:
                del self._under_way[asker, number]

    def _name(self, aid: str, name: str) -> None:
        if name != aid:
            ids = self._named.setdefault(name, [])
            if aid not in ids:
                ids.append(aid)

    def _forget(self, aid: str) -> None:
        for name, ids in list(self._named.items()):
            if aid in ids:
                ids.remove(aid)
                if not ids:
                    del self._named[name]

    def _id_of(self, target: str) -> str:
        """The id of who is called ``target``, by name or by id."""
        ids = self._named.get(target)
        return ids[-1] if ids else target

    def noted(self, mailbox: Mailbox, note: Note) -> bool:
        """Take news of who lives behind ``mailbox``; False for a note about something else."""
        if note.name == "here":
            self.link(mailbox, note.data["aid"], note.data["name"])
        elif note.name == "gone":
            aid = note.data["aid"]
            if self.below.get(aid) is mailbox:
                del self.below[aid]
                self._forget(aid)
            self._tell_above("gone", note.data["aid"], note.data["name"])
        else:
            return False
        return True

    def _tell_above(self, name: str, aid: str, actor_name: str) -> None:
        if self.uplink is not None:
            self.uplink.post(Note(name, {"aid": aid, "name": actor_name}))

    # Asking

    async def request(
        self, sender: str, target: str, command: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Send a command and return its result; None at once if it has no answer.

        Raises what the command raised, ``CommandNotFound``, ``ActorGone``, or
        ``ActorError`` for what cannot be sent.
        """
        number = next(self._ids) if wants_answer(command) else 0
        target = self._id_of(target)
        request = Request(number, sender, target, command, pack((args, kwargs)))
        future: asyncio.Future[Answer] | None = None
        if number:
            future = asyncio.get_running_loop().create_future()
            self._waiting[number] = future
        try:
            await self._send(request)
            if future is None:
                return None
            answer = await future
        finally:
            self._waiting.pop(number, None)
        if not answer.ok:
            raise_error(answer.payload, import_modules=self._import_modules)
        return unpack(answer.payload, import_modules=self._import_modules)

    async def _send(self, request: Request) -> None:
        if request.target in self.actors:
            self._deliver(request, None)
            return
        mailbox = self.below.get(request.target)
        if mailbox is not None:
            if request.id:
                self._under_way[request.sender, request.id] = mailbox
        else:
            mailbox = self.uplink
        if mailbox is None:
            raise ActorGone(_nobody(request.target))
        await mailbox.send(request)

    # Passing on

    def receive(self, source: Mailbox, message: Message) -> None:
        """A request or an answer has come through ``source``."""
        if isinstance(message, Request):
            self._pass_on(source, message)
        elif isinstance(message, Answer):
            self._answer(message.target, message.id, message.ok, message.payload, source)

    def _pass_on(self, source: Mailbox, request: Request) -> None:
        request.target = self._id_of(request.target)
        if request.target in self.actors:
            self._deliver(request, source)
            return
        mailbox = self.below.get(request.target)
        if mailbox is not None:
            if request.id:
                self._under_way[request.sender, request.id] = mailbox
        elif source is not self.uplink:
            mailbox = self.uplink
        if mailbox is None or mailbox.closed:
            if request.id:
                error = pack_error(ActorGone(_nobody(request.target)))
                self._answer(request.sender, request.id, False, error)
            else:
                logger.debug("dropped %s for %s, who has gone", request.command, request.target)
            return
        mailbox.post(request)
        if mailbox.full:
            mailbox.hold_until_drained(source)

    def _answer(
        self, asker: str, number: int, ok: bool, payload: bytes, source: Mailbox | None = None
    ) -> None:
        self._under_way.pop((asker, number), None)
        if asker in self.actors:
            future = self._waiting.get(number)
            if future is not None and not future.done():
                future.set_result(Answer(number, asker, ok, payload))
            return
        mailbox = self.below.get(asker) or (self.uplink if source is not self.uplink else None)
        if mailbox is not None and not mailbox.closed:
            mailbox.post(Answer(number, asker, ok, payload))
            if mailbox.full and source is not None and source is not mailbox:
                mailbox.hold_until_drained(source)

    # Doing

    def _deliver(self, request: Request, source: Mailbox | None) -> None:
        actor = self.actors[request.target]
        # The actor's own: when it ends, whoever waits for the answer is told.
        task = actor.create_task(self._run(actor, request))
        if request.id:
            return
        self._notices.add(task)
        task.add_done_callback(self._noticed)
        if len(self._notices) >= _MANY_COMMANDS and source is not None:
            source.hold()
            self._holding.append(source)
            asyncio.get_running_loop().call_later(_LONGEST_HOLD, self._let_go)

    def _noticed(self, task: asyncio.Task[None]) -> None:
        self._notices.discard(task)
        if self._holding and len(self._notices) < _MANY_COMMANDS // 2:
            self._let_go()

    def _let_go(self) -> None:
        holding, self._holding = self._holding, []
        for mailbox in holding:
            if not mailbox.closed:
                mailbox.let_go()

    async def _run(self, actor: Actor, request: Request) -> None:
        try:
            args, kwargs = unpack(request.payload, import_modules=self._import_modules)
            # The proxy's name is only for people: the id is what counts.
            caller = ActorProxy(request.sender)
            asked = CommandRequest(actor, caller, request.command)
            with actor.current():
                result = await run_command(asked, args, kwargs)
            ok, payload = True, pack(result) if request.id else b""
        except asyncio.CancelledError:
            ok, payload = False, pack_error(ActorGone("the actor has ended meanwhile"))
        except Exception as exc:
            if not request.id:
                logger.exception("command %s of %s failed", request.command, actor.name)
                return
            ok, payload = False, pack_error(exc)
        if request.id:
            self._answer(request.sender, request.id, ok, payload)


def _nobody(target: str) -> str:
    return f"no actor is called {target!r}, or it has ended"
