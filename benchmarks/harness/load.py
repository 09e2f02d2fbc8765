"""Driving ``load.c``: compiling it, running a slice of load, reading the server's CPU around it.

Owns: the conversation with the load generator.
Leaves: the order of the slices to ``run.py``, and what they add up to to ``figures``.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .peers import BUILD, HERE, HOST, Server
from .process import Cpu, Memory, Tree, udp_sockets

# What the load generator itself may take beyond its two phases: see PATIENCE in load.c.
PATIENCE = 12.0


class LoadError(Exception):
    """The load generator failed, or did not answer in time."""


@dataclass(frozen=True)
class Slice:
    """One server under load for one slice of time. Times in microseconds unless named."""

    round: int
    messages: int
    seconds: float
    errors: int
    lost: int
    sent: int
    skipped: int
    dropped: int
    p50: float
    p99: float
    longest: float
    cpu: float
    user: float
    system: float
    waited: float

    @property
    def cost(self) -> float:
        """CPU microseconds of the server's tree per message."""
        return self.cpu / self.messages

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds

    def as_data(self) -> dict[str, Any]:
        """This slice for the results file."""
        return asdict(self)


# What is compiled: the source, and flags in front of it and behind it.
_PROGRAMS = {
    "load": ("load.c", (), ()),
    "load-tls": ("load.c", ("-DTLS",), ("-lssl", "-lcrypto")),
    "floor": ("floor.c", (), ()),
}


def build(*names: str) -> None:
    """Compile these programs into ``build/`` where they are older than their source."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise LoadError("a C compiler is needed (cc, or the one that CC names)")
    BUILD.mkdir(exist_ok=True)
    for name in names:
        file, before, behind = _PROGRAMS[name]
        source, target = HERE / file, BUILD / name
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            flags = ["-std=gnu17", "-O2", "-Wall", "-Wextra", *before, "-o", str(target)]
            try:
                subprocess.run([compiler, *flags, str(source), *behind], check=True)
            except subprocess.CalledProcessError:
                hint = ": OpenSSL's headers are needed (libssl-dev)" if behind else ""
                raise LoadError(f"{name} cannot be compiled{hint}") from None


@dataclass(frozen=True)
class Load:
    """What to ask of the load generator, which is ``program`` in ``build/``.

    ``options`` are its own, as in its ``usage``.
    """

    mode: str
    core: int
    seconds: float
    warmup: float
    options: Sequence[str] = ()
    program: str = "load"

    def slice(self, server: Server, number: int) -> Slice:
        """Load ``server`` once; the CPU time is that of the counted messages alone."""
        with self._generator(server) as generator:
            _expect_ready(generator, self.warmup + PATIENCE)
            server.tree.settle()
            dropped = _drops(server)
            before = server.tree.cpu()
            answer = _measure(generator, self.seconds + PATIENCE)
            server.tree.settle()
            cpu = server.tree.cpu() - before
            return _as_slice(number, answer, cpu, _drops(server) - dropped)

    def hold(self, server: Server) -> tuple[Memory, Memory, dict[str, Any]]:
        """Memory of ``server`` before and while the load generator's connections are open."""
        server.tree.settle()
        before = server.tree.memory()
        with self._generator(server) as generator:
            _expect_ready(generator, PATIENCE)
            answer = _measure(generator, self.seconds + PATIENCE)
            server.tree.settle()
            return before, server.tree.memory(), answer

    @contextlib.contextmanager
    def _generator(self, server: Server) -> Iterator[Tree]:
        command = [
            str(BUILD / self.program),
            self.mode,
            f"{HOST}:{server.port}",
            "--wait",
            f"--seconds={self.seconds}",
            f"--warmup={self.warmup}",
            *self.options,
        ]
        pipe = subprocess.PIPE
        generator = Tree(command, self.core, stdin=pipe, stdout=pipe)
        try:
            yield generator
        finally:
            for stream in (generator.process.stdin, generator.process.stdout):
                if stream is not None:
                    stream.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                generator.process.wait(PATIENCE)
            generator.stop()


def _expect_ready(generator: Tree, timeout: float) -> None:
    if _read_line(generator, timeout) != "ready":
        raise LoadError("the load generator could not connect")


def _measure(generator: Tree, timeout: float) -> dict[str, Any]:
    assert generator.process.stdin is not None
    generator.process.stdin.write(b"\n")
    answer: dict[str, Any] = json.loads(_read_line(generator, timeout))
    return answer


def _read_line(generator: Tree, timeout: float) -> str:
    stream = generator.process.stdout
    assert stream is not None
    until = time.monotonic() + timeout
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([stream], [], [], max(0.0, until - time.monotonic()))[0]:
            raise LoadError("the load generator did not answer in time")
        piece = os.read(stream.fileno(), 4096)
        if not piece:
            raise LoadError("the load generator ended too early")
        line += piece
    return line.decode().strip()


def _drops(server: Server) -> int:
    return sum(found.drops for found in udp_sockets(server.port))


def _as_slice(number: int, answer: dict[str, Any], cpu: Cpu, dropped: int) -> Slice:
    total = cpu.total / 1000
    share = cpu.user / (cpu.user + cpu.system) if cpu.user + cpu.system else 0.0
    return Slice(
        round=number,
        messages=answer["messages"],
        seconds=answer["seconds"],
        errors=answer["errors"],
        lost=answer["lost"],
        sent=answer["sent"],
        skipped=answer["skipped"],
        dropped=dropped,
        p50=answer["p50_us"],
        p99=answer["p99_us"],
        longest=answer["max_us"],
        cpu=round(total, 3),
        user=round(total * share, 3),
        system=round(total * (1 - share), 3),
        waited=round(cpu.waited / 1000, 3),
    )
