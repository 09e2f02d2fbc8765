"""Measures our servers next to their peers: CPU time per message, rates, latencies, memory.

    python benchmarks/run.py --scenario tcp64 --rounds 10 --servers floor,uvloop,pulsar-consumer

Owns: the order of the slices, and the command line.
Leaves: scenarios, peers, load, figures and files to the modules of ``harness``. README.md says
what the figures mean, and what they do not.
"""

import argparse
import contextlib
import random
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from harness import figures, peers, requests, results
from harness.load import Load, LoadError, Slice, build
from harness.peers import Peer, Server, StartError
from harness.process import set_receive_buffers
from harness.scenarios import SCENARIOS, Scenario


def main() -> int:
    """Run the scenarios of the command line; returns the exit status."""
    options = parse()
    if options.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:16}{scenario.about}")
            print(f"{'':16}{', '.join(peer.name for peer in scenario.peers)}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    _raise_descriptor_limit()
    try:
        tls = any(SCENARIOS[name].tls for name in options.scenario)
        build("load", "floor", *(["load-tls"] if tls else []))
        if tls:
            peers.write_certificate()
        for name in options.scenario:
            run(name, options)
    except (LoadError, StartError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(name: str, options: argparse.Namespace) -> None:
    """Measure one scenario, print its table, and keep its results."""
    scenario = SCENARIOS[name]
    chosen, problems = choose(scenario, options)
    plan = Plan(scenario, options)
    peers.ACCESS_LOG.unlink(missing_ok=True)
    print(f"\n## {name}: {scenario.about}\n", flush=True)
    before = results.machine()
    if scenario.mode == "idle":
        outcome, text = measure_memory(chosen, problems, plan)
    else:
        outcome, text = measure_cost(chosen, problems, plan)
    print(text)
    for server, reason in problems.items():
        print(f"\nproblem: {server}: {reason}")
    if options.save:
        arguments = {**plan.arguments(), "servers": [peer.name for peer in chosen]}
        short = {server: reason.splitlines()[-1] for server, reason in problems.items()}
        path = results.save(name, arguments, {"machine": before, "problems": short, **outcome})
        print(f"\nkept in {path.relative_to(peers.HERE.parent)}", flush=True)


def choose(scenario: Scenario, options: argparse.Namespace) -> tuple[list[Peer], dict[str, str]]:
    """The peers to measure, and why others that were asked for cannot be."""
    known = {peer.name: peer for peer in (*scenario.peers, *options.add)}
    wanted = options.servers or list(known)
    problems = {name: "no such server in this scenario" for name in wanted if name not in known}
    chosen = []
    for name in wanted:
        if name in known:
            lacks = known[name].missing()
            if lacks:
                problems[name] = f"not installed: {', '.join(lacks)}"
            else:
                chosen.append(known[name])
    return chosen, problems


class Plan:
    """The figures that a run of one scenario uses: its own, or those of the command line."""

    def __init__(self, scenario: Scenario, options: argparse.Namespace) -> None:
        self.scenario = scenario
        self.rounds: int = options.rounds or scenario.rounds
        self.connections: int = options.connections or scenario.connections
        self.size: int = options.size or scenario.size
        self.seconds: float = options.seconds
        self.warmup: float = options.warmup
        self.fresh: bool = options.fresh
        self.floor: str = scenario.floor
        self.baseline: str = options.baseline or scenario.baseline
        self.rate: float | None = options.rate
        self.receive_buffer: int = options.receive_buffer or _default_receive_buffer()
        self.server_core: int = options.cores[0]
        self.load_core: int = options.cores[1]
        self.framed: bool = options.framed

    @property
    def references(self) -> list[str]:
        """The servers that all others are compared to."""
        return list(dict.fromkeys([self.floor, self.baseline]))

    def arguments(self) -> dict[str, Any]:
        """These figures for the results file."""
        return {key: value for key, value in vars(self).items() if key != "scenario"}

    def load(self, mode: str, *options: str, connections: int | None = None) -> Load:
        """A load of this plan's size in ``mode``."""
        common = [f"--connections={connections or self.connections}", f"--size={self.size}"]
        if self.framed:
            common.append("--end-crlf")
        if self.scenario.request:
            request = requests.write(peers.BUILD, self.scenario.request)
            common.append(f"--request={request}")
        common += self.scenario.options
        program = "load-tls" if self.scenario.tls else "load"
        return Load(mode, self.load_core, self.seconds, self.warmup, (*common, *options), program)


@contextlib.contextmanager
def serving(
    chosen: Sequence[Peer], problems: dict[str, str], plan: Plan
) -> Iterator[dict[str, Server]]:
    """All of ``chosen`` at once; those that do not start are named in ``problems``."""
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for peer in chosen:
            try:
                servers[peer.name] = server = start(peer, plan)
            except StartError as error:
                problems[peer.name] = str(error)
            else:
                stack.callback(server.stop)
        for name, server in list(servers.items()):
            try:
                server.wait()
                if plan.scenario.datagrams:
                    _equal_buffers(server, plan)
            except StartError as error:
                problems[name] = str(error)
                del servers[name]
        yield servers


def start(peer: Peer, plan: Plan) -> Server:
    """Start ``peer`` on the servers' core."""
    return Server(
        peer,
        datagrams=plan.scenario.datagrams,
        http=bool(plan.scenario.request),
        tls=plan.scenario.tls,
        core=plan.server_core,
        crowd=plan.connections > 900,
    )


def measure_cost(
    chosen: Sequence[Peer], problems: dict[str, str], plan: Plan
) -> tuple[dict[str, Any], str]:
    """CPU per message: every server in turn, in short slices, again and again."""
    slices: dict[str, list[Slice]] = {peer.name: [] for peer in chosen}
    notes: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(serving(chosen, problems, plan))
        load = _cost_load(servers, plan, notes)
        for number in range(1, plan.rounds + 1):
            if plan.fresh and number > 1:
                stack.pop_all().close()
                servers = stack.enter_context(serving(chosen, problems, plan))
            one_round(servers, load, number, slices, problems)
            _progress(f"round {number} of {plan.rounds}")
    _progress("")
    summaries = figures.summarise(slices, plan.references)
    data = {
        name: {"summary": summary, "slices": [s.as_data() for s in slices[name]]}
        for name, summary in summaries.items()
    }
    text = figures.table(summaries, plan.references)
    if notes:
        text += f"\n\noffered: {notes['rate']:,} datagrams/s"
    goals = figures.goals(slices, plan.scenario.goals)
    if goals:
        text += f"\n\n{figures.goals_table(goals)}"
        notes["goals"] = goals
    return {**notes, "servers": data}, text


def _cost_load(servers: Mapping[str, Server], plan: Plan, notes: dict[str, Any]) -> Load:
    if plan.scenario.mode != "udp-open":
        return plan.load(plan.scenario.mode)
    if plan.rate is None and plan.baseline not in servers:
        raise LoadError(f"the top rate of {plan.baseline} is needed: add it, or give --rate")
    top = plan.rate
    if top is None:
        closed = plan.load("udp")
        top = max(closed.slice(servers[plan.baseline], number).rate for number in range(3)) * 0.7
    notes["rate"] = round(top)
    return plan.load("udp-open", f"--rate={notes['rate']}")


def one_round(
    servers: dict[str, Server],
    load: Load,
    number: int,
    slices: dict[str, list[Slice]],
    problems: dict[str, str],
) -> None:
    """Load each server once, in an order of this round's own: none follows the same one always."""
    order = list(servers)
    random.Random(number).shuffle(order)
    for name in order:
        server = servers[name]
        try:
            slices[name].append(load.slice(server, number))
        except LoadError as error:
            problems[name] = f"round {number}: {error}"
            if not server.tree.alive:
                problems[name] += f"\n{server.output()}"
                del servers[name]


def measure_memory(
    chosen: Sequence[Peer], problems: dict[str, str], plan: Plan
) -> tuple[dict[str, Any], str]:
    """Memory per idle connection: one server at a time, a fresh one for each sample."""
    samples: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in chosen}
    for number in range(1, plan.rounds + 1):
        for peer in chosen:
            with serving([peer], problems, plan) as servers:
                for name, server in servers.items():
                    try:
                        samples[name].append(_memory_sample(server, plan))
                    except LoadError as error:
                        problems[name] = f"round {number}: {error}"
        _progress(f"round {number} of {plan.rounds}")
    _progress("")
    summaries = figures.summarise_memory(samples, plan.baseline)
    data = {
        name: {"summary": summary, "samples": samples[name]} for name, summary in summaries.items()
    }
    text = figures.memory_table(summaries, plan.baseline)
    goals = figures.memory_goals(samples, plan.scenario.goals)
    if goals:
        text += f"\n\n{figures.goals_table(goals)}"
    return {"goals": goals, "servers": data}, text


def _memory_sample(server: Server, plan: Plan) -> dict[str, float]:
    # What the first connections load and allocate once is not a connection's.
    plan.load("idle", connections=8).hold(server)
    empty, full, answer = plan.load("idle").hold(server)
    opened = answer["messages"]
    if not opened:
        raise LoadError("no connection was answered")
    return {
        "connections": opened,
        "errors": answer["errors"],
        "pss_kib": (full.pss - empty.pss) / opened,
        "rss_kib": (full.rss - empty.rss) / opened,
        "empty_pss_kib": empty.pss,
    }


def _equal_buffers(server: Server, plan: Plan) -> None:
    sizes = set_receive_buffers(server.tree, server.port, plan.receive_buffer)
    if set(sizes) != {plan.receive_buffer}:
        print(
            f"warning: the receive buffer of {server.name} is {sizes or 'unknown'},"
            f" not {plan.receive_buffer}: its losses cannot be compared",
            file=sys.stderr,
        )


def _default_receive_buffer() -> int:
    with open("/proc/sys/net/core/rmem_default") as file:
        return int(file.read())


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:30}", end="\r" if not text else "", file=sys.stderr, flush=True)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "--scenario",
        type=_scenarios,
        default="tcp64",
        help="names with commas, http, or all (tcp64)",
    )
    add("--servers", type=_names, help="names with commas; all of the scenario's")
    add(
        "--add",
        type=_custom,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one more server; {port} in the command is replaced",
    )
    add("--baseline", help="whom to compare with, besides the floor; uvloop, for HTTP granian")
    add("--rounds", type=_count, help="the scenario's own: 10, HTTP 5, idle 3")
    add("--seconds", type=float, default=1.0, help="length of a slice (1)")
    add("--warmup", type=float, default=0.2, help="load before each slice, not counted (0.2)")
    add("--connections", type=_count, help="the scenario's own: 64, idle 5000")
    add("--size", type=_count, help="bytes per message; the scenario's own")
    add("--rate", type=float, help="udp70: datagrams per second, instead of 70 %% of the top")
    add(
        "--receive-buffer",
        type=_count,
        metavar="BYTES",
        help="of every UDP server, as the kernel counts it (net.core.rmem_default)",
    )
    add("--framed", action="store_true", help="end each message with CRLF CRLF")
    add("--fresh", action="store_true", help="restart the servers for every round")
    add("--cores", type=_cores, default="0,1", metavar="SERVER,LOAD", help="pin to these (0,1)")
    add("--no-save", dest="save", action="store_false", help="print only, keep no results file")
    add("--list", action="store_true", help="list the scenarios and their servers")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _scenarios(text: str) -> list[str]:
    names = _names(text)
    groups = {"all": list(SCENARIOS), "http": [name for name in SCENARIOS if "http-" in name]}
    known = [*SCENARIOS, *groups]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name}: one of {', '.join(known)}")
    return [each for name in names for each in groups.get(name, [name])]


def _custom(text: str) -> Peer:
    try:
        return peers.custom(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _cores(text: str) -> tuple[int, int]:
    server, _, load = text.partition(",")
    return int(server), int(load)


if __name__ == "__main__":
    sys.exit(main())
