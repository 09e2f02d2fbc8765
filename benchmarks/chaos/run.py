"""Torments a server under load, and checks after each fault that nothing is lost, stuck or left.

    python benchmarks/chaos/run.py --seed 1 --actions 100 --workers 4 --transport tls
    python benchmarks/chaos/run.py --plan 'reload*20,recycle*20,scale=1,scale=4,burst'

Every request of the load is counted and none is sent again. After each step, which is one action
or two at once, these must hold:

- as many workers are ready as there have to be, and below the arbiter is nothing else but one
  fork server: no zombie, no worker of before;
- the arbiter has no more descriptors than before with so many workers, and has not grown by more
  than 5 MB;
- no request has failed that the fault does not explain: a killed worker's own, nobody else's; no
  idle connection has ended without a goodbye;
- no answer was later than 100 ms beyond the slowest without faults, that of a bare echo server in
  the same moments, and the time for which a worker was ready to run but had no core: the machine
  is busy, not least with the new workers;
- no traceback is in the log.

At the end the server is stopped under load: the same holds, and nothing is left of it.

A line per step, and a last line of JSON. Exit code 0: everything held; 1: it did not; 2: the run
itself did not work.

Owns: the sequence, the invariants, the report.
Leaves: actions to ``actions``, the server to ``server``, the load to ``load``.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: the repository's root is not among the places to import from.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.chaos import kernel
from benchmarks.chaos.actions import ACTIONS, CUT, Action, Excuse, Scale
from benchmarks.chaos.load import TLS_NAME, LoadProcess
from benchmarks.chaos.server import (
    FLAVOURS,
    PATIENCE,
    ROOT,
    InvariantError,
    Options,
    Server,
    ready_workers,
    slots_of,
)

# By how many bytes the arbiter may grow.
GROWTH = 5 * 1024 * 1024

# How many steps are two actions at once.
TOGETHER = 1 / 3

# Seconds between the beginnings of two actions that happen at once.
APART = 0.4

# The name of the load that the bare server has.
CONTROL = "control"

TRACES = ("Traceback (most recent call last)", "Exception ignored", "was never ")


class Run:
    """Servers, their load, and what has been found out about them."""

    def __init__(self, options: argparse.Namespace, servers: Sequence[Server]) -> None:
        self.options = options
        self.servers = servers
        self.load: LoadProcess
        self.broken: list[str] = []
        self.steps: list[dict[str, Any]] = []
        # The slowest answer of each load without faults, in milliseconds.
        self.calm: dict[str, float] = {}
        self._seen: dict[str, dict[str, Any]] = {}
        self._descriptors: dict[tuple[str, int], dict[int, str]] = {}
        self._memory: dict[str, int] = {}
        # What is in the directory of each server before it starts.
        self.files: dict[str, set[str]] = {}

    # The sequence

    def begin(self, load: LoadProcess) -> None:
        """See what is normal: some seconds without faults."""
        self.load = load
        for server in self.servers:
            self._settle(server)
        load.look()
        time.sleep(self.options.calm)
        seen = load.look()
        for name, found in seen["loads"].items():
            if found["failed"] or not found["answered"]:
                raise RuntimeError(f"the load {name} does not work: {found} {seen['failures'][:3]}")
            self.calm[name] = found["window"]["max_ms"] or 0.0
        self._seen = seen["loads"]
        for server in self.servers:
            self._memory[server.name] = kernel.resident(server.pid)

    def step(self, *actions: Action) -> None:
        """Do these at once, wait until all is as it has to be, and judge."""
        begun = time.monotonic()
        server = actions[0].server
        starved = self._starved()
        remarks: list[str] = []
        found: list[str] = []
        if len(actions) == 2:
            actions[0].beside, actions[1].beside = actions[1], actions[0]
        started: list[Action] = []
        try:
            for action in actions:
                if started:
                    time.sleep(action.chance.uniform(0.0, APART))
                started.append(action)
                action.begin()
        except InvariantError as error:
            found.append(str(error))
            started.pop()
        for action in started if actions[0].finishes_first else reversed(started):
            try:
                remarks.append(action.finish())
            except InvariantError as error:
                found.append(str(error))
        try:
            self._settle(server)
        except InvariantError as error:
            found.append(str(error))
        excuse = sum((action.excuse for action in actions), Excuse(lates=0))
        about = " + ".join(action.about for action in actions)
        machine = max(
            (ms - starved.get(pid, 0.0) for pid, ms in self._starved().items()), default=0.0
        )
        self._judge(server, about, excuse, found, begun, [*filter(None, remarks)], machine)

    def stop(self, server: Server) -> None:
        """Stop ``server`` while its load goes on: the last step."""
        begun = time.monotonic()
        found: list[str] = []
        by = self.options.end
        excuse = Excuse(lates=0)
        starved = self._starved()
        below = kernel.descendants(server.pid)
        shared = {path for pid in (server.pid, *below) for path in kernel.shared_memory(pid)}
        self.load.ask("ending", *(name for name, _ in loads_of(server)))
        if by == "command":
            asking = server.command("stop")
        else:
            server.signal(signal.SIGKILL if by == "kill" else signal.SIGTERM)
        try:
            code = server.wait_for_end()
            if by == "command":
                output, _ = asking.communicate(timeout=PATIENCE)
                if asking.returncode:
                    found.append(f"pulsar stop: exit code {asking.returncode}: {output!r}")
            if by == "kill":
                # Who was in the queue of a socket that nobody holds any more is cut off.
                excuse.failures, excuse.reasons = server.flavour.connecting, CUT
            elif code:
                found.append(f"the exit code is {code}")
            self._wait_for_nothing(below)
        except InvariantError as error:
            found.append(str(error))
        took = time.monotonic() - begun
        left = names_in(server.directory) - self.files[server.name]
        if by == "kill":
            left.discard("socket")  # nobody was there to remove it
        left |= {path for path in shared if Path(path).exists()}
        if left:
            found.append(f"left behind: {', '.join(sorted(left))}")
        machine = max(0.0, *(kernel.starved(pid) - ms for pid, ms in starved.items()))
        self._judge(server, f"stop by {by}", excuse, found, begun, [f"{took:.2f} s"], machine)

    def _starved(self) -> dict[int, float]:
        """For how long each process that answers has been without a core."""
        return {pid: kernel.starved(pid) for server in self.servers for pid in server.workers()}

    # What must hold

    def _settle(self, server: Server) -> None:
        """Wait until the process tree is as it has to be. Raises ``InvariantError``."""
        until = time.monotonic() + PATIENCE
        while True:
            wrong = self._wrong_with(server)
            if not wrong:
                return
            if time.monotonic() > until:
                raise InvariantError(f"{PATIENCE:.0f} s later {wrong}")
            time.sleep(0.1)

    def _wrong_with(self, server: Server) -> str:
        """What is not as it has to be; asks the kernel first, because that is cheap."""
        assert server.process is not None
        if server.process.poll() is not None:
            raise InvariantError(f"the arbiter has ended with code {server.process.returncode}")
        below = kernel.descendants(server.pid)
        zombies = [pid for pid in below if kernel.state(pid) == "Z"]
        if zombies:
            return f"there are zombies: {zombies}"
        if len(below) != server.wanted + 1:
            texts = ", ".join(f"{pid} {kernel.command(pid)}" for pid in below)
            return f"there are {len(below)} processes for {server.wanted} workers: {texts}"
        try:
            status = server.status()
        except InvariantError as error:
            return str(error)
        slots, said = slots_of(status), ready_workers(status)
        ready = [slot for slot in slots if slot["state"] == "running" and slot["pid"] in below]
        keepers = [found["pid"] for found in status["forkservers"]]
        if not status["ready"] or {said, len(ready), len(slots)} != {server.wanted}:
            return (
                f"{said} workers are said to be ready, {len(ready)} of {len(slots)} "
                f"slots are, and {server.wanted} have to be: {json.dumps(status)}"
            )
        if len(keepers) != 1 or {*keepers, *(slot["pid"] for slot in slots)} != set(below):
            return f"status does not know who is there, {below}: {json.dumps(status)}"
        return self._wrong_descriptors(server)

    def _wrong_descriptors(self, server: Server) -> str:
        now = kernel.descriptors(server.pid)
        key = server.name, server.wanted
        least = self._descriptors.setdefault(key, now)
        if len(now) > len(least):
            return (
                f"the arbiter has {len(now)} descriptors, and had {len(least)} with as many "
                f"workers: now {sorted(now.values())}, then {sorted(least.values())}"
            )
        # One of the first may have been a connection of somebody who asked for its status.
        self._descriptors[key] = now
        return ""

    def _wait_for_nothing(self, pids: Sequence[int]) -> None:
        until = time.monotonic() + PATIENCE
        while left := [pid for pid in pids if kernel.is_running(pid)]:
            if time.monotonic() > until:
                texts = ", ".join(f"{pid} {kernel.command(pid)}" for pid in left)
                raise InvariantError(f"{PATIENCE:.0f} s after the arbiter's end: {texts}")
            time.sleep(0.02)

    def _judge(
        self,
        server: Server,
        about: str,
        excuse: Excuse,
        found: list[str],
        begun: float,
        remarks: list[str],
        machine: float,
    ) -> None:
        """Look at the load, at the memory and at the log; print the step's line."""
        seen, failures, slow = self._look(time.monotonic())
        window = {name: load["window"]["max_ms"] or 0.0 for name, load in seen.items()}
        for owner in self.servers:
            names = [name for name, _ in loads_of(owner)]
            excused = excuse if owner is server else Excuse(lates=0)
            found += self._unexcused_failures(names, seen, failures, excused)
            found += self._unexcused_lates(names, slow, excused, max(window[CONTROL], machine))
        if seen[CONTROL]["failed"] > self._seen[CONTROL]["failed"]:
            raise RuntimeError(f"the bare server's load fails: {failures}")
        assert server.process is not None
        growth = 0
        if server.process.returncode is None:
            growth = kernel.resident(server.pid) - self._memory[server.name]
            if growth > GROWTH:
                found.append(f"the arbiter has grown by {growth / 1024:.0f} KiB")
        log = server.new_log()
        traces = [line for line in log.splitlines() if any(t in line for t in TRACES)]
        if traces and not excuse.traceback:
            found.append(f"in the log: {traces[0]}")
        names = [name for name, _ in loads_of(server)]
        failed = sum(seen[name]["failed"] - self._seen[name]["failed"] for name in names)
        slowest = max(window[name] for name in names)
        self._seen = seen
        step = {
            "server": server.name,
            "action": about,
            "seconds": round(time.monotonic() - begun, 2),
            "failed": failed,
            "slowest_ms": slowest,
            "bare_ms": window[CONTROL],
            "starved_ms": round(machine, 1),
            "growth_kib": growth // 1024,
            "broken": found,
        }
        self.steps.append(step)
        print(
            f"{len(self.steps):4} {server.name:5} {about:44} {step['seconds']:6.2f} s  "
            f"failed {failed}  slowest {slowest:.1f} ms (bare {window[CONTROL]:.1f}, starved "
            f"{machine:.1f})  "
            f"{'; '.join(remarks)}",
            flush=True,
        )
        if found:
            for sentence in found:
                print(f"     BROKEN: {sentence}")
            print("     its log:")
            for line in log.splitlines()[-60:]:
                print(f"     | {line}", flush=True)
            self.broken += [f"{len(self.steps)} {about}: {sentence}" for sentence in found]

    def _look(self, after: float) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
        """Look at the load until all that was sent before ``after`` has its outcome."""
        failures: list[dict[str, Any]] = []
        slow: list[dict[str, Any]] = []
        slowest: dict[str, float] = {}
        until = time.monotonic() + PATIENCE
        while True:
            look = self.load.look()
            failures += look["failures"]
            slow += look["slow"]
            for name, load in look["loads"].items():
                slowest[name] = max(slowest.get(name, 0.0), load["window"]["max_ms"] or 0.0)
            if look["oldest"] is None or look["oldest"] > after:
                break
            if time.monotonic() > until:
                raise RuntimeError("the load waits for something for good")
            time.sleep(0.02)
        for name, load in look["loads"].items():
            load["window"]["max_ms"] = slowest[name]
        return look["loads"], failures, slow

    def _unexcused_failures(
        self,
        names: Sequence[str],
        seen: dict[str, Any],
        failures: Sequence[dict[str, Any]],
        excuse: Excuse,
    ) -> Iterator[str]:
        mine = [failure for failure in failures if failure["load"] in names]
        strange = [failure for failure in mine if failure["reason"] not in excuse.reasons]
        if strange:
            yield f"{len(strange)} requests have failed without a reason: {told(strange)}"
        elif len(mine) > excuse.failures:
            yield f"{len(mine)} requests have failed, not {excuse.failures} at most: {told(mine)}"

        def more(what: str) -> int:
            return sum(int(seen[name][what] - self._seen[name][what]) for name in names)

        if more("unannounced") > excuse.unannounced:
            yield (
                f"{more('unannounced')} idle connections have ended without a goodbye, not "
                f"{excuse.unannounced} at most"
            )
        if more("strays") and "timeout" not in excuse.reasons:
            yield f"{more('strays')} messages came that nobody had asked for"

    def _unexcused_lates(
        self,
        names: Sequence[str],
        slow: Sequence[dict[str, Any]],
        excuse: Excuse,
        machine: float,
    ) -> Iterator[str]:
        def limit(name: str) -> float:
            return float(self.options.late) + max(self.calm[name], machine)

        late = [answer for answer in slow if answer["load"] in names]
        late = [answer for answer in late if answer["ms"] > limit(answer["load"])]
        too_late = [a for a in late if a["ms"] > limit(a["load"]) + excuse.late]
        if too_late:
            yield f"{len(too_late)} answers were late: {told(too_late)}"
        elif excuse.lates is not None and len(late) > excuse.lates:
            yield f"{len(late)} answers were late, not {excuse.lates} at most: {told(late)}"

    # The report

    def summary(self, loads: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What the run has shown, as data."""
        return {
            "seed": self.options.seed,
            "transport": self.options.transport,
            "reuse_port": self.options.reuse_port,
            "workers": self.options.workers,
            "seconds": round(seconds, 1),
            "steps": self.steps,
            "sent": sum(load["sent"] for name, load in loads.items() if name != CONTROL),
            "failed": sum(load["failed"] for name, load in loads.items() if name != CONTROL),
            "calm_max_ms": self.calm,
            "loads": loads,
            "broken": self.broken,
        }


def told(found: Sequence[dict[str, Any]]) -> str:
    """The first few of these failures or slow answers."""
    texts = [
        f"{one['load']} {one['reason']} after {one['after_ms']:.0f} ms {one['detail']}".strip()
        if "reason" in one
        else f"{one['load']} {one['ms']:.0f} ms"
        for one in found[:4]
    ]
    return ", ".join(texts) + (", ..." if len(found) > 4 else "")


def loads_of(server: Server) -> list[tuple[str, str]]:
    """Name and kind of each load of ``server``, its clients included."""
    return [(f"{server.name}-{text.partition('=')[0]}", text) for text in server.flavour.loads]


def names_in(directory: Path) -> set[str]:
    """What is in a directory."""
    return {path.name for path in directory.iterdir()}


# The actions of a run


def sequence(run: Run) -> Iterator[list[Action]]:
    """The steps of the run, by its plan, or by chance and its seed."""
    options = run.options
    chance = random.Random(options.seed)
    if options.plan:
        for step in options.plan:
            for server in run.servers:
                if all(ACTIONS[name].possible(server) for name, _ in step):
                    yield [planned(server, run.load, chance, *part) for part in step]
        return
    kinds = [ACTIONS[name] for name in options.only]
    for _ in range(options.actions):
        # Each step has a seed of its own: what happens in one does not change the next.
        own = random.Random(chance.getrandbits(64))
        server = own.choice(run.servers)
        first = own.choice([kind for kind in kinds if kind.possible(server)])
        step = [first(server, run.load, own)]
        others = [kind for kind in kinds if kind.joins and not (kind.counts and first.counts)]
        if first.joined and others and own.random() < TOGETHER:
            step.append(own.choice(others)(server, run.load, own))
        yield step


def planned(
    server: Server, load: LoadProcess, chance: random.Random, name: str, number: int | None
) -> Action:
    """An action of the plan."""
    action = ACTIONS[name](server, load, chance)
    if isinstance(action, Scale) and number is not None:
        action.number = number
    return action


# The program


def main() -> int:
    """Run; returns the exit code."""
    options = parse()
    kernel.become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pulsar-chaos-")))
        try:
            return torment(options, directory, stack)
        except (RuntimeError, OSError) as error:
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
            return 2


def torment(options: argparse.Namespace, directory: Path, stack: contextlib.ExitStack) -> int:
    """Start everything, do everything, say what it has shown."""
    settings = Options(
        transport=options.transport,
        workers=options.workers,
        reuse_port=options.reuse_port,
        kept=options.kept,
        timeout=options.timeout,
        late=options.late,
        python=options.python,
        extra=tuple(options.option),
    )
    if options.transport == "tls":
        settings = with_certificates(settings, directory)
    servers = [Server(name, directory / name, settings) for name in options.serve]
    begun = time.monotonic()
    run = Run(options, servers)
    for server in servers:
        server.write_files()
        run.files[server.name] = names_in(server.directory)
        stack.callback(server.kill)
        try:
            server.start()
        except InvariantError as error:
            print(f"BROKEN: {server.name}: {error}\n{server.log()}")
            print(json.dumps({"broken": [f"start: {error}"]}))
            return 1
    loads = [
        f"{name}:{text}@{server.address}" for server in servers for name, text in loads_of(server)
    ]
    bare = bare_server(stack)
    loads.append(f"{CONTROL}:echo=2@127.0.0.1:{bare.port}")
    with LoadProcess(loads, ca=settings.ca, pace=options.pace) as load:
        run.begin(load)
        for actions in sequence(run):
            run.step(*actions)
            if run.broken and not options.keep_going:
                break
        for server in servers:
            run.stop(server)
        wait_until_turned_away(load)
        report = load.finish()
    orphans = [pid for pid in kernel.children(os.getpid()) if pid != bare.pid]
    run.broken += [
        f"orphan {pid}: {kernel.command(pid)}" for pid in orphans if kernel.is_running(pid)
    ]
    summary = run.summary(report["loads"], time.monotonic() - begun)
    print(
        f"{'BROKEN' if run.broken else 'held'}: {len(run.steps)} steps in {summary['seconds']} s, "
        f"{summary['sent']} requests, {summary['failed']} failed, seed {options.seed}"
    )
    print(json.dumps(summary), flush=True)
    return int(bool(run.broken))


@dataclass(frozen=True)
class Bare:
    """The server that nobody torments."""

    pid: int
    port: int


def bare_server(stack: contextlib.ExitStack) -> Bare:
    """Start an echo server that is not ours, for as long as ``stack`` lasts."""
    script = ROOT / "benchmarks/servers/bare.py"
    process = subprocess.Popen(
        [sys.executable, str(script), "0", "uvloop"], stdout=subprocess.PIPE, text=True
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    with process.stdout as stdout:
        word, _, port = stdout.readline().partition(" ")
    if word != "listening":
        raise RuntimeError("the bare server does not start")
    return Bare(process.pid, int(port))


def with_certificates(settings: Options, directory: Path) -> Options:
    """The settings with an authority and a certificate, which are written."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    leaf = authority.issue_cert(TLS_NAME)
    leaf.private_key_pem.write_to_path(directory / "server.key")
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(directory / "server.crt", append=True)
    return replace(
        settings,
        ca=directory / "ca.pem",
        certificate=directory / "server.crt",
        key=directory / "server.key",
    )


def wait_until_turned_away(load: LoadProcess) -> None:
    """Wait until every client but those of the bare server knows that its server has ended."""
    until = time.monotonic() + PATIENCE
    while load.look()["running"] > 2 and time.monotonic() < until:
        time.sleep(0.05)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--seed", type=int, default=1, help="what is done, and when (1)")
    add("--actions", type=int, default=100, help="how many steps (100)")
    add("--only", type=names, default=list(ACTIONS), help=f"of {', '.join(ACTIONS)} (all)")
    add("--plan", type=plan, help="what to do: reload*20,scale=1+kill-worker,burst")
    add("--transport", choices=("tcp", "tls", "unix", "udp"), default="tcp", help="(tcp)")
    add("--serve", type=served, help="of lines, echo, web, udp (lines,echo; over udp: udp)")
    add("--workers", type=int, default=4, help="at most, and at first (4)")
    add("--reuse-port", action="store_true", help="a listening socket per worker")
    add("--timeout", type=float, default=2.0, help="when a worker counts as stuck (2)")
    add("--end", choices=("term", "command", "kill"), default="term", help="the last stop (term)")
    add("--pace", type=float, default=200.0, help="requests per second of each load (200)")
    add("--kept", type=int, default=16, help="clients that keep their connections (16)")
    add("--calm", type=float, default=2.0, help="seconds of load without faults, at first (2)")
    add("--late", type=float, default=100.0, metavar="MS", help="what is too late (100)")
    add("--keep-going", action="store_true", help="go on when something is broken")
    add("--python", default=sys.executable, help="which runs the servers (this one)")
    add("--option", action="append", default=[], help="one more of pulsar serve: --option=--x=1")
    options = parser.parse_args()
    if options.serve is None:
        options.serve = ["udp"] if options.transport == "udp" else ["lines", "echo"]
    if (options.transport == "udp") != (options.serve == ["udp"]):
        parser.error("udp is served over udp, and nothing else is")
    return options


def names(text: str) -> list[str]:
    """Names of actions, with commas."""
    found = text.split(",")
    for name in found:
        if name not in ACTIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(ACTIONS)}")
    return found


def served(text: str) -> list[str]:
    """Names of flavours, with commas."""
    found = text.split(",")
    for name in found:
        if name not in FLAVOURS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(FLAVOURS)}")
    return found


def plan(text: str) -> list[list[tuple[str, int | None]]]:
    """Steps with commas; NAME, ``scale=NUMBER``, two at once with +; ``*TIMES`` behind it."""
    found: list[list[tuple[str, int | None]]] = []
    for part in text.split(","):
        step, _, times = part.partition("*")
        try:
            found += [[planned_part(name) for name in step.split("+")]] * int(times or 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: that is no number") from None
        if len(found[-1]) > 2:
            raise argparse.ArgumentTypeError(f"{part!r}: two at once are enough")
    return found


def planned_part(text: str) -> tuple[str, int | None]:
    """NAME, or NAME=NUMBER."""
    name, _, number = text.partition("=")
    names(name)
    return name, int(number) if number else None


if __name__ == "__main__":
    sys.exit(main())
