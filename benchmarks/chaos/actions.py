"""What is done to a server: deploys, signals, commands, faults; and what each of them explains.

Owns: the actions, and the outcome that each must have by itself.
Leaves: what must hold after all of them to ``run``.

An action has two parts, ``begin`` and ``finish``, so that another can happen in between.
"""

import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.chaos import kernel
from benchmarks.chaos.load import LoadProcess
from benchmarks.chaos.server import (
    PATIENCE,
    InvariantError,
    Server,
    ready_workers,
    slots_of,
)

# How many connections a burst has, and how uneven they may be spread.
BURST = 200
UNEVEN = 1.5

# A killed worker's slot serves again within this many seconds.
REPLACED = 1.0

# Seconds that a worker is stopped for: it must not count as stuck.
FREEZE = (0.1, 0.8)

# Behind code that works: no worker with it ever serves.
ENDS_IN_EACH_WORKER = """
import os

os.register_at_fork(after_in_child=lambda: os._exit(7))
"""

CUT = frozenset({"reset", "eof", "handshake"})


@dataclass
class Excuse:
    """What may go wrong because of an action.

    :param failures: how many requests may fail, with one of ``reasons``
    :param unannounced: how many idle connections may end without a goodbye
    :param late: by how many milliseconds answers may be late
    :param lates: how many answers may be so late; None: any number
    :param traceback: whether there may be one in the log
    :param unsure: whether a reload beside it may fail
    """

    failures: int = 0
    reasons: frozenset[str] = frozenset()
    unannounced: int = 0
    late: float = 0.0
    lates: int | None = None
    traceback: bool = False
    unsure: bool = False

    def __add__(self, other: "Excuse") -> "Excuse":
        limits = (self.lates, other.lates)
        return Excuse(
            failures=self.failures + other.failures,
            reasons=self.reasons | other.reasons,
            unannounced=self.unannounced + other.unannounced,
            late=self.late + other.late,
            lates=None if None in limits else sum(filter(None, limits)),
            traceback=self.traceback or other.traceback,
            unsure=self.unsure or other.unsure,
        )


class Action:
    """Something that is done to ``server`` while ``load`` is under way."""

    name: ClassVar[str]
    # Whether it may begin while another is under way, and whether another may meanwhile.
    joins: ClassVar[bool] = False
    joined: ClassVar[bool] = False
    # Whether it changes how many workers there have to be: not two of these at once.
    counts: ClassVar[bool] = False
    # Whether it has to finish before what has joined it.
    finishes_first: ClassVar[bool] = False

    def __init__(self, server: Server, load: LoadProcess, chance: random.Random) -> None:
        self.server = server
        self.load = load
        self.chance = chance
        self.excuse = Excuse(lates=0)
        # The other action, where two are under way.
        self.beside: Action | None = None
        self.choose()

    def choose(self) -> None:
        """Take what is random about it, and nothing else: the seed decides the whole run."""

    @property
    def about(self) -> str:
        """The action in a few words."""
        return self.name

    @classmethod
    def possible(cls, server: Server) -> bool:
        """Whether it makes sense for ``server``."""
        return True

    def begin(self) -> None:
        """Do it."""

    def finish(self) -> str:
        """Wait for its outcome; returns a remark. Raises ``InvariantError``."""
        return ""

    # For subclasses

    @property
    def unsure(self) -> bool:
        """Whether the outcome may be another because of the action beside this one."""
        return self.beside is not None and self.beside.excuse.unsure

    def wait(
        self, condition: Callable[[], bool], sentence: str, patience: float = PATIENCE
    ) -> float:
        """Wait until ``condition`` holds; returns the seconds that it took."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > patience:
                raise InvariantError(f"{self.about}: {sentence} after {patience:.0f} s")
            time.sleep(0.02)
        return time.monotonic() - begun

    def one_of_the_workers(self) -> int:
        """A worker, chosen by chance."""
        workers = sorted(self.server.workers())
        if not workers:
            raise InvariantError(f"{self.about}: there is no worker")
        return workers[int(self.where * len(workers))]

    @property
    def where(self) -> float:
        """Which of several, from 0 to 1: chosen with the action, whoever there is by then."""
        return self._where

    _where: float = 0.0

    def pick(self) -> None:
        """Choose ``where``."""
        self._where = self.chance.random()

    def ran(self, process: "subprocess.Popen[bytes]") -> tuple[int, str]:
        """Exit code and output of a command. Raises ``InvariantError`` when it does not end."""
        with process:
            try:
                output, _ = process.communicate(timeout=2 * PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise InvariantError(f"{self.about}: the command does not end") from None
        return process.returncode, output.decode(errors="replace").strip()


class Reload(Action):
    """New code that works, by HUP or by command."""

    name = "reload"
    joined = True

    def choose(self) -> None:
        self.by = self.chance.choice(("HUP", "command"))

    @property
    def about(self) -> str:
        return f"reload by {self.by}"

    def begin(self) -> None:
        self._before = self.server.status()["generation"]
        self.server.deploy()
        self._command = None
        if self.by == "command":
            self._command = self.server.command("reload")
        else:
            self.server.signal(signal.SIGHUP)

    def finish(self) -> str:
        begun = time.monotonic()
        if self._command is not None:
            code, output = self.ran(self._command)
            if code:
                if not self.unsure:
                    raise InvariantError(f"{self.about}: exit code {code}: {output}")
                # Once more, now that nobody is in the way.
                again, output = self.ran(self.server.command("reload"))
                if again:
                    raise InvariantError(f"{self.about}, again: exit code {again}: {output}")
                return "the second time"
        elif self.unsure and not self._is_new_within(PATIENCE / 3):
            self.server.signal(signal.SIGHUP)
            self._wait_until_new()
            return "the second time"
        self._wait_until_new()
        took = time.monotonic() - begun
        version = self.server.answered_version()
        if version != self.server.version:
            raise InvariantError(
                f"{self.about}: version {version} answers, not {self.server.version}"
            )
        return f"{took:.2f} s"

    def _wait_until_new(self) -> None:
        if not self._is_new_within(PATIENCE):
            raise InvariantError(f"{self.about}: the new generation does not serve")

    def _is_new_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.server.status()
            slots = slots_of(status)
            if slots and all(slot["generation"] > self._before for slot in slots):
                return True
            time.sleep(0.1)
        return False


class Recycle(Action):
    """TERM to one worker: it is replaced, and drains."""

    name = "recycle"
    joins = True
    joined = True

    def choose(self) -> None:
        self.pick()

    def begin(self) -> None:
        self._pid = self.one_of_the_workers()
        self.server.signal(signal.SIGTERM, self._pid)

    def finish(self) -> str:
        took = self.wait(lambda: not kernel.is_running(self._pid), f"{self._pid} is still there")
        return f"{took:.2f} s"


class Scale(Action):
    """Another number of workers, by command."""

    name = "scale"
    joined = True
    counts = True
    number: int | None = None

    def choose(self) -> None:
        self.number = self.chance.randint(1, self.server.options.workers)

    @property
    def about(self) -> str:
        return f"scale to {self.number}"

    def begin(self) -> None:
        assert self.number is not None
        self.server.wanted = self.number
        self._command = self.server.command("scale", self.number)

    def finish(self) -> str:
        code, output = self.ran(self._command)
        if code:
            raise InvariantError(f"{self.about}: exit code {code}: {output}")
        return ""


class OneMoreOrLess(Action):
    """TTIN or TTOU: a worker more, up to those of the start, or one less."""

    name = "ttin-ttou"
    joins = True
    counts = True

    def choose(self) -> None:
        self.pick()

    def begin(self) -> None:
        server = self.server
        most = server.options.workers
        self._more = server.wanted == 1 or (server.wanted < most and self.where < 0.5)
        if most > 1:
            server.wanted += 1 if self._more else -1
            server.signal(signal.SIGTTIN if self._more else signal.SIGTTOU)

    def finish(self) -> str:
        return f"to {self.server.wanted}"


class KillWorker(Action):
    """KILL to one worker: what it had in hands is lost, and its slot serves again at once."""

    name = "kill-worker"
    joins = True

    def choose(self) -> None:
        self.pick()

    def begin(self) -> None:
        server = self.server
        pid = self.one_of_the_workers()
        hands = server.hands(pid)
        self._calm = len(server.workers()) == server.wanted
        self._log = len(server.log())
        server.crashes.append(time.monotonic())
        self._killed = time.monotonic()
        server.signal(signal.SIGKILL, pid)
        self._pid = pid
        if server.name == "udp":
            # The socket survives with all that it has; a worker has one datagram in its hands.
            self.excuse = Excuse(failures=1, reasons=frozenset({"timeout"}), late=1000 * REPLACED)
        else:
            # Whoever connects at this moment may have come into its hands as well.
            hands += server.flavour.connecting
            alone = server.options.reuse_port or server.wanted == 1 or self.beside is not None
            self.excuse = Excuse(
                failures=hands,
                reasons=CUT,
                unannounced=hands,
                late=1000 * REPLACED if alone else 0.0,
                lates=None if alone else 0,
            )
        self.excuse.unsure = True

    def finish(self) -> str:
        if self.beside is not None or not self._calm:
            self._excuse_back_off()
            return f"pid {self._pid}"
        # The last time that the slot was seen to be missing: no later than allowed.
        missing = self._killed
        until = self._killed + PATIENCE
        while time.monotonic() < until:
            asked = time.monotonic()
            status = self.server.status()
            missed = self._pid in [slot["pid"] for slot in slots_of(status)]
            if ready_workers(status) >= self.server.wanted and not missed:
                break
            missing = asked
        took = missing - self._killed
        allowed = REPLACED + self._excuse_back_off() + self.server.options.late / 1000
        if took > allowed:
            raise InvariantError(f"{self.about}: the slot was not ready {took:.2f} s later")
        return (
            f"pid {self._pid}, not ready for {took:.2f} to {time.monotonic() - self._killed:.2f} s"
        )

    def _excuse_back_off(self) -> float:
        seconds = self.server.back_off(self._log)
        if self.excuse.late:
            self.excuse.late += 1000 * seconds
        return seconds


class KillForkServer(Action):
    """KILL to the fork server: the workers go on, and another takes its place."""

    name = "kill-forkserver"
    joins = True

    def begin(self) -> None:
        status = self.server.status()
        self._workers = {slot["pid"] for slot in slots_of(status)}
        self._pids = [found["pid"] for found in status["forkservers"]]
        for pid in self._pids:
            self.server.signal(signal.SIGKILL, pid)
        self.excuse = Excuse(lates=0, unsure=True)

    def finish(self) -> str:
        begun = time.monotonic()
        while time.monotonic() < begun + PATIENCE:
            status = self.server.status()
            pids = [found["pid"] for found in status["forkservers"]]
            if pids and not set(pids) & set(self._pids):
                workers = {slot["pid"] for slot in slots_of(status)}
                if self.beside is None and workers != self._workers:
                    raise InvariantError(f"{self.about}: the workers do not go on")
                return f"another after {time.monotonic() - begun:.1f} s"
            time.sleep(0.1)
        raise InvariantError(f"{self.about}: there is no other fork server")


class Freeze(Action):
    """STOP to one worker, and CONT: not stuck, only slow."""

    name = "freeze"
    joins = True

    def choose(self) -> None:
        self.pick()
        self.seconds = round(self.chance.uniform(*FREEZE), 1)

    @property
    def about(self) -> str:
        return f"freeze for {self.seconds} s"

    def begin(self) -> None:
        self._pid = self.one_of_the_workers()
        self.server.signal(signal.SIGSTOP, self._pid)
        # Whatever else is waited for: a longer stop would be another fault.
        self._thaw = threading.Timer(self.seconds, self.server.signal, (signal.SIGCONT, self._pid))
        self._thaw.start()
        self.excuse = Excuse(late=1000 * self.seconds)

    def finish(self) -> str:
        self._thaw.join()
        if self.beside is None and not kernel.is_running(self._pid):
            raise InvariantError(f"{self.about}: {self._pid} was not left alone")
        return f"pid {self._pid}"


class BrokenDeploy(Action):
    """New code or settings that cannot serve: the old ones go on, and the reload says why."""

    name = "broken"
    joined = True
    finishes_first = True

    # What is deployed, and what the reload has to say about it.
    KINDS: ClassVar[dict[str, tuple[str, str]]] = {
        "syntax error": ("class Served(:\n", "SyntaxError"),
        "missing module": ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
        "exception": ("raise RuntimeError('deployed by mistake')\n", "deployed by mistake"),
        "nothing to serve": ("Other = None\n", "Served"),
        "end of each worker": (ENDS_IN_EACH_WORKER, "7"),
        "taken address": ("", ""),
    }

    def choose(self) -> None:
        self.kind = self.chance.choice(list(self.KINDS))

    @property
    def about(self) -> str:
        return f"deploy of {self.kind}"

    def begin(self) -> None:
        server = self.server
        self._workers = {slot["pid"] for slot in slots_of(server.status())}
        self._taken: socket.socket | None = None
        self.excuse = Excuse(lates=0, traceback=True)
        source, self._says = self.KINDS[self.kind]
        if self.kind == "taken address":
            self._taken = sock = socket.socket(
                type=socket.SOCK_DGRAM if server.name == "udp" else socket.SOCK_STREAM
            )
            sock.bind(("127.0.0.1", 0))
            if server.name != "udp":
                sock.listen()
            port = sock.getsockname()[1]
            server.configure(f"{'udp://' if server.name == 'udp' else ''}127.0.0.1:{port}")
            self._says = str(port)
            server.deploy()
        else:
            if self.kind == "end of each worker":
                source = server.source() + source
            server.version += 1
            server.deploy(source)
        self._command = server.command("reload")

    def finish(self) -> str:
        server = self.server
        try:
            code, output = self.ran(self._command)
            if code == 0:
                raise InvariantError(f"{self.about}: pulsar reload has exit code 0: {output}")
            if not self.unsure and self._says not in output:
                raise InvariantError(f"{self.about}: pulsar reload does not say why: {output}")
            workers = {slot["pid"] for slot in slots_of(server.status())}
            if self.beside is None and workers != self._workers:
                raise InvariantError(f"{self.about}: the old workers do not go on")
        finally:
            if self._taken is not None:
                self._taken.close()
            server.restore()
        if self.unsure:
            # A fork server that was killed meanwhile may have been replaced by one with this code.
            again, output = self.ran(server.command("reload"))
            if again:
                raise InvariantError(f"{self.about}, repaired: exit code {again}: {output}")
        return f"exit code {code}"


class Stuck(Action):
    """A request that never ends: its stacks are logged, its worker is replaced."""

    name = "stuck"

    # What is asked for, and whose name the stacks must show.
    KINDS: ClassVar[dict[str, str]] = {"!sleep": "asleep_for_good", "!spin": "spins_for_good"}

    @classmethod
    def possible(cls, server: Server) -> bool:
        # A thread that is stuck takes nobody else with it.
        return not any(option.startswith("--threads") for option in server.options.extra)

    def choose(self) -> None:
        self.word = self.chance.choice(list(self.KINDS))

    @property
    def about(self) -> str:
        return f"stuck by {self.word}"

    def begin(self) -> None:
        server = self.server
        self._workers = set(server.workers())
        self._begun = time.monotonic()
        self._log = len(server.log())
        server.crashes.append(self._begun)
        self._sock = server.connect()
        self._sock.sendall(server.flavour.dialogue.question(self.word.encode()))
        most = max(server.spread(server.workers()).values(), default=0)
        # Noticed after the timeout, killed, replaced.
        late = 1000 * (server.options.timeout + 2.0)
        if server.name == "udp":
            self.excuse = Excuse(failures=1, reasons=frozenset({"timeout"}), late=late)
        else:
            hands = most + server.flavour.connecting
            alone = server.options.reuse_port or server.wanted == 1
            self.excuse = Excuse(
                failures=hands,
                reasons=CUT | {"timeout"},
                unannounced=hands,
                late=late,
                lates=None if alone else hands,
            )
        self.excuse.traceback = True

    def finish(self) -> str:
        server = self.server
        with self._sock:
            self.wait(
                lambda: bool(self._workers - set(server.workers())),
                "the worker is still there",
                server.options.timeout + 10.0,
            )
        took = time.monotonic() - self._begun
        self.excuse.late += 1000 * server.back_off(self._log)
        function = self.KINDS[self.word]
        self.wait(
            lambda: function in server.log()[self._log :],
            f"{function} is in no stack in the log",
            5.0,
        )
        return f"replaced after {took:.1f} s"


class Burst(Action):
    """Many connections at once: every worker gets its share."""

    name = "burst"

    @classmethod
    def possible(cls, server: Server) -> bool:
        return server.name != "udp"

    def finish(self) -> str:
        server, load = self.server, self.load
        workers = server.workers()
        name = f"{server.name}-{server.flavour.loads[0].partition('=')[0]}"
        load.ask("pause")
        try:
            before = server.spread(workers)
            found = load.ask("burst", name, BURST)
            after = server.spread(workers)
            load.ask("release")
            self.wait(
                lambda: sum(server.spread(workers).values()) <= sum(before.values()),
                "its connections are still there",
            )
        finally:
            load.ask("resume")
        if found["failed"]:
            raise InvariantError(f"{self.about}: {found['failed']} failed: {found['failures'][:3]}")
        shares = [after[pid] - before[pid] for pid in workers]
        remark = (
            f"{shares}, with those of before {[after[pid] for pid in workers]}, "
            f"slowest {found['latency']['max_ms']} ms"
        )
        if len(workers) == server.wanted and max(shares) > UNEVEN * sum(shares) / len(shares):
            raise InvariantError(f"{self.about}: unevenly spread: {remark}")
        return remark


ACTIONS: dict[str, type[Action]] = {
    action.name: action
    for action in (
        Reload,
        Recycle,
        Scale,
        OneMoreOrLess,
        KillWorker,
        KillForkServer,
        Freeze,
        BrokenDeploy,
        Stuck,
        Burst,
    )
}
