"""What the process tree costs: to start, in memory, per message, and at rest.

    python benchmarks/tree/compare.py start memory price rest

start   from the command to the first answer, with 2 workers, next to gunicorn
memory  of an application that imports Django, with 1 to 4 workers, next to gunicorn --preload
price   CPU per echoed message of the whole tree: 1 worker, next to a single process
rest    CPU of the whole tree while nothing happens

Owns: these four comparisons, their limits, and the command line.
Leaves: reading processes, loading servers, and the results files to ``benchmarks/harness``.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Self

if not __package__:
    # Run as a script: the harness is in the directory above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness import figures, results
from harness.load import Load, LoadError, Slice, build
from harness.peers import SERVERS, Peer, Server, StartError
from harness.process import Tree

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
PATIENCE = 30.0
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

# The limits that the project has set itself.
SLOWER_START = 1.0
DEARER_WORKER = 1.15
LARGER_TREE = 20 * 1024
DEARER_MESSAGE = 1.10
AT_REST = 0.001

Outcome = tuple[dict[str, Any], str, list[str]]


@dataclass(frozen=True)
class Program:
    """A server's command line, with ``{port}`` and ``{workers}`` in it."""

    name: str
    command: tuple[str, ...]

    def words(self, port: int, workers: int) -> list[str]:
        """The command for this port and number of workers."""
        return [
            word.replace("{port}", str(port)).replace("{workers}", str(workers))
            for word in self.command
        ]


def pulsar(module: str) -> Program:
    """``pulsar serve`` of what ``module`` calls ``Served``."""
    serve = ("-m", "pulsar", "serve", f"{module}:Served", "--bind", f"{HOST}:{{port}}")
    return Program("pulsar", (sys.executable, *serve, "--workers", "{workers}"))


def gunicorn(module: str, kind: str = "sync", *options: str) -> Program:
    """``gunicorn`` of what ``module`` calls ``application``, with workers of ``kind``."""
    serve = ("-m", "gunicorn", f"{module}:application", "--bind", f"{HOST}:{{port}}")
    serve += ("--workers", "{workers}", "--worker-class", kind, "--log-level", "warning")
    return Program(f"gunicorn {kind}", (sys.executable, *serve, *options))


class Running:
    """A program that runs on ``core`` with ``workers`` workers; a context manager."""

    def __init__(self, program: Program, workers: int, core: int) -> None:
        self.port = free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
        self.begun = time.monotonic()
        with contextlib.chdir(HERE / "served"):
            self.tree = Tree(
                program.words(self.port, workers), core, stdout=self._log, stderr=self._log
            )
        self._program = program

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.tree.stop()
        self._log.close()

    def wait_for_answer(self) -> float:
        """Ask until it answers; returns the seconds since its start. Raises ``StartError``."""
        while not self.ask():
            if not self.tree.alive or time.monotonic() - self.begun > PATIENCE:
                self._log.seek(0)
                said = self._log.read().decode(errors="replace")[-2000:]
                raise StartError(f"{self._program.name} does not answer:\n{said}")
            time.sleep(0.001)
        return time.monotonic() - self.begun

    def ask(self) -> bool:
        """Whether one request is answered as it has to be."""
        try:
            with socket.create_connection((HOST, self.port), 5.0) as sock:
                sock.sendall(REQUEST)
                answer = b""
                while piece := sock.recv(65536):
                    answer += piece
        except OSError:
            return False
        return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"Hello, World!\n")

    def wait_for_processes(self, count: int) -> None:
        """Wait until there are at least ``count`` processes. Raises ``StartError``."""
        until = time.monotonic() + PATIENCE
        while len(self.tree.pids()) < count:
            if time.monotonic() > until:
                raise StartError(f"{self._program.name} has not started {count} processes")
            time.sleep(0.01)


# Start


def start(options: argparse.Namespace) -> Outcome:
    """Seconds from the command to the first answer, and the CPU time until then; 2 workers."""
    programs = [pulsar("hello"), gunicorn("hello"), gunicorn("hello", "gthread")]
    samples: dict[str, list[float]] = {program.name: [] for program in programs}
    cpu: dict[str, list[float]] = {program.name: [] for program in programs}
    for number in range(-1, options.rounds or 10):
        for program in shuffled(programs, number):
            with Running(program, 2, options.cores[0]) as running:
                took = running.wait_for_answer()
                used = running.tree.cpu().total / 1e9
                # The first start of each compiles, and fills the disk's cache.
                if number >= 0:
                    samples[program.name].append(round(took, 4))
                    cpu[program.name].append(round(used, 4))
    data: dict[str, Any] = {
        name: {"best": min(of), "median": median(of), "cpu": median(cpu[name]), "samples": of}
        for name, of in samples.items()
    }
    names = [name for name in data if name != "pulsar"]
    ratios = {
        "best": data["pulsar"]["best"] / min(data[name]["best"] for name in names),
        "median": data["pulsar"]["median"] / min(data[name]["median"] for name in names),
        "cpu": data["pulsar"]["cpu"] / min(data[name]["cpu"] for name in names),
    }
    data["ratios"] = {key: round(ratio, 3) for key, ratio in ratios.items()}
    rows = [
        [name, *(f"{1000 * data[name][key]:.0f}" for key in ("best", "median", "cpu"))]
        for name in samples
    ]
    text = table(["server", "best ms", "median ms", "CPU ms"], rows)
    text += f"\n\nto the faster gunicorn: {told(ratios)}"
    # On a machine that does other things, one of the two may be anything.
    slower = min(ratios["best"], ratios["median"]) > SLOWER_START
    return data, text, [f"start: {told(ratios)} times as long as gunicorn"] if slower else []


def told(ratios: Mapping[str, float]) -> str:
    """Ratios in words."""
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())


# Memory


def memory(options: argparse.Namespace) -> Outcome:
    """PSS of the whole tree with 1 to 4 workers, and of each further worker."""
    programs = [pulsar("django_site"), gunicorn("django_site", "sync", "--preload")]
    counts = (1, 2, 3, 4)
    samples: dict[str, dict[int, list[int]]] = {
        program.name: {count: [] for count in counts} for program in programs
    }
    for number in range(options.rounds or 3):
        for count in counts:
            for program in shuffled(programs, number):
                samples[program.name][count].append(tree_memory(program, count, options.cores[0]))
    data: dict[str, Any] = {}
    rows = []
    for name, of in samples.items():
        trees = {count: median(pss) for count, pss in of.items()}
        further = (trees[4] - trees[1]) / 3
        data[name] = {"trees_kib": trees, "further_worker_kib": further, "samples_kib": of}
        rows.append([name, *(f"{trees[c] / 1024:.1f}" for c in counts), f"{further / 1024:.2f}"])
    ours, theirs = (data[program.name] for program in programs)
    ratio = ours["further_worker_kib"] / theirs["further_worker_kib"]
    more = ours["trees_kib"][4] - theirs["trees_kib"][4]
    data["further_worker_ratio"], data["tree_of_4_more_kib"] = round(ratio, 3), more
    broken = []
    if ratio > DEARER_WORKER:
        broken.append(f"memory: a further worker costs {ratio:.2f} times gunicorn's")
    if more > LARGER_TREE:
        broken.append(f"memory: the tree of 4 has {more / 1024:.1f} MiB more than gunicorn's")
    titles = ["server", *(f"{c} workers, MiB" for c in counts), "each further, MiB"]
    text = table(titles, rows)
    text += f"\n\na further worker: {ratio:.2f} of gunicorn's; tree of 4: {more / 1024:+.1f} MiB"
    return data, text, broken


def tree_memory(program: Program, workers: int, core: int) -> int:
    """PSS in KiB of a tree whose workers have all served."""
    with Running(program, workers, core) as running:
        running.wait_for_answer()
        # Theirs: master and workers; ours has the fork server as well.
        running.wait_for_processes(workers + (2 if program.name == "pulsar" else 1))
        for _ in range(50 * workers):
            if not running.ask():
                raise StartError(f"{program.name} does not answer any more")
        running.tree.settle(quiet=0.2, limit=3.0)
        return running.tree.memory().pss


# Price


def price(options: argparse.Namespace) -> Outcome:
    """CPU per echoed message: one worker in its tree, next to one process."""
    build()
    data: dict[str, Any] = {}
    texts, broken = [], []
    for mode, script, extra in (
        ("tcp", "pulsar_request.py", ("--end-crlf",)),
        ("tcp", "pulsar_consumer.py", ()),
        ("churn", "pulsar_request.py", ("--end-crlf",)),
    ):
        summaries = price_of(mode, script, extra, options)
        name = f"{mode} {script.removesuffix('.py')}"
        data[name] = summaries
        texts.append(f"{name}\n\n{figures.table(summaries, ['single process'])}")
        ratios = summaries["tree of 1"]["ratios"]["single process"]
        # Noise makes each of the three larger at times; a real price shows in all.
        if min(ratios[key] for key in ("best", "median", "paired")) > DEARER_MESSAGE:
            broken.append(f"price: {name}: {ratios['median']:.2f} times a single process")
    return data, "\n\n".join(texts), broken


def price_of(
    mode: str, script: str, extra: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Summaries of both ways to run one server."""
    command = (sys.executable, str(SERVERS / script), "--bind", f"{HOST}:{{port}}")
    peers = [
        Peer("single process", (*command, "--concurrency", "thread")),
        Peer("tree of 1", (*command, "--workers", "1")),
    ]
    load = Load(mode, options.cores[1], 1.0, 0.2, ["--connections=64", "--size=64", *extra])
    slices: dict[str, list[Slice]] = {peer.name: [] for peer in peers}
    for number in range(options.rounds or 5):
        # New processes every time: memory may lie luckily in one.
        for peer in shuffled(peers, number):
            server = Server(peer, core=options.cores[0])
            try:
                server.wait()
                slices[peer.name] += [load.slice(server, 2 * number + turn) for turn in (0, 1)]
            finally:
                server.stop()
    return figures.summarise(slices, ["single process"])


# Rest


def rest(options: argparse.Namespace) -> Outcome:
    """Share of a core that a tree uses while nothing happens."""
    data: dict[str, Any] = {}
    rows, broken = [], []
    for program, workers in (
        (pulsar("hello"), 1),
        (pulsar("hello"), 4),
        (gunicorn("hello"), 4),
    ):
        with Running(program, workers, options.cores[0]) as running:
            running.wait_for_answer()
            running.tree.settle(quiet=0.5, limit=5.0)
            pids = running.tree.pids()
            before = {pid: cpu_of(pid) for pid in pids}
            time.sleep(options.seconds)
            used = {pid: cpu_of(pid) - before[pid] for pid in pids}
        share = sum(used.values()) / 1e9 / options.seconds
        name = f"{program.name}, {workers} workers"
        data[name] = {"share": share, "seconds": options.seconds, "ns": list(used.values())}
        each = " ".join(f"{ns / 1e6 / options.seconds:.2f}" for ns in used.values())
        rows.append([name, f"{share:.4%}", each])
        if program.name == "pulsar" and share > AT_REST:
            broken.append(f"rest: {name} use {share:.3%} of a core")
    return data, table(["tree", "of a core", "ms per second of each process"], rows), broken


def cpu_of(pid: int) -> int:
    """CPU time of one process in nanoseconds."""
    return time.clock_gettime_ns((~pid << 3) | 2)


# The program

COMPARISONS: dict[str, Callable[[argparse.Namespace], Outcome]] = {
    "start": start,
    "memory": memory,
    "price": price,
    "rest": rest,
}


def main() -> int:
    """Make the comparisons of the command line; 1 when a limit is exceeded, 2 when one fails."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="pulsar-compare-") as compiled:
        # Nobody compiles at every start; for both alike, wherever their sources are.
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        return compare(options)


def compare(options: argparse.Namespace) -> int:
    """Make each comparison, print it, and keep it."""
    found: list[str] = []
    for name in options.comparisons:
        before = results.machine()
        try:
            data, text, broken = COMPARISONS[name](options)
        except (StartError, LoadError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
        print(f"\n## {name}\n\n{text}", flush=True)
        found += broken
        outcome = {"machine": before, "versions": versions(), "figures": data, "broken": broken}
        if options.save:
            path = results.save(f"tree-{name}", {"rounds": options.rounds}, outcome)
            print(f"\nkept in {path.relative_to(HERE.parents[1])}", flush=True)
        else:
            print(f"\n{json.dumps(data)}", flush=True)
    for sentence in found:
        print(f"\nBROKEN: {sentence}")
    return int(bool(found))


def versions() -> dict[str, str | None]:
    """What has run."""
    found = results.versions()
    for name in ("gunicorn", "django"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def shuffled(things: Sequence[Any], number: int) -> list[Any]:
    """In an order of this round's own."""
    order = list(things)
    random.Random(number).shuffle(order)
    return order


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("comparisons", nargs="+", choices=list(COMPARISONS), help="what to compare")
    add("--rounds", type=int, help="start: 10, memory: 3, price: 5 (of two slices each)")
    add("--seconds", type=float, default=20.0, help="of rest (20)")
    add("--cores", type=cores, default="0,1", metavar="SERVER,LOAD", help="pin to these (0,1)")
    add("--no-save", dest="save", action="store_false", help="print JSON, keep no results file")
    return parser.parse_args()


def cores(text: str) -> tuple[int, int]:
    """Two numbers with a comma."""
    server, _, load = text.partition(",")
    return int(server), int(load)


if __name__ == "__main__":
    sys.exit(main())
