"""A server for the soak programs: ``pulsar serve`` as a user starts it, and its memory.

Owns: ``Serving``; certificates for it.
Leaves: the load and the limits to the programs.
"""

import contextlib
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from benchmarks.chaos import kernel

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
SERVES_ON = re.compile(r" serves on 127\.0\.0\.1:(\d+)")
NAME = "localhost"

MIB = 1024 * 1024


class Serving:
    """``pulsar serve`` with ``options``; a context manager.

    :param options: of the command line, beside the application and the address
    """

    def __init__(self, *options: str, app: str = "benchmarks.soak.app:app") -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
        command = ["serve", app, "--kind", "wsgi", "--bind", "127.0.0.1:0", *options]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pulsar", *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.port = 0

    def __enter__(self) -> Self:
        until = time.monotonic() + PATIENCE
        while (found := SERVES_ON.search(self.log())) is None:
            if self._process.poll() is not None or time.monotonic() > until:
                self._process.kill()
                raise RuntimeError(f"the server does not start:\n{self.log()}")
            time.sleep(0.05)
        self.port = int(found[1])
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in kernel.descendants(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    subprocess.run(["kill", "-9", str(pid)], check=False)
            self._process.kill()
            self._process.wait()
        self._log.close()

    def stop(self) -> None:
        """Tell it to end; it takes its time."""
        self._process.terminate()

    def log(self) -> str:
        """What it has said."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def workers(self) -> list[int]:
        """The processes that serve."""
        children = kernel.children(self._process.pid)
        found = [pid for pid in kernel.descendants(self._process.pid) if pid not in children]
        return found or [self._process.pid]

    def memory(self) -> int:
        """Bytes that the workers use: what they share with others counts in part (PSS)."""
        return sum(proportional(pid) for pid in self.workers())


def proportional(pid: int) -> int:
    """The proportional set size of ``pid`` in bytes; 0 when it has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def certificates() -> Iterator[tuple[Sequence[str], ssl.SSLContext]]:
    """Options for a server with TLS, and a context that believes it."""
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert(NAME)
    with tempfile.TemporaryDirectory() as name:
        key, chain = Path(name, "key.pem"), Path(name, "chain.pem")
        leaf.private_key_pem.write_to_path(key)
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(chain, append=True)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        yield ["--cert-file", str(chain), "--key-file", str(key)], context
