"""What is around a tree: users, files, logs, systemd, and containers."""

import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.certs import make_certificates
from tests.support.process import PATIENCE, clean_environment, exclusive_port
from tests.support.programs import require_program
from tests.support.tree import (
    PULSAR,
    Client,
    Tree,
    deploy,
    descendants,
    gone,
    opened,
    run_to_end,
    serve,
    until,
    write,
)

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


# Users


@as_root
def test_workers_run_as_another_user(open_path: Path) -> None:
    secret = open_path / "secret"
    secret.write_text("root's own")
    secret.chmod(0o600)
    deploy(open_path, more="IMPORTED_AS = os.getuid(), os.geteuid(), os.getgid(), os.getgroups()\n")
    arguments = ("--workers", 2, "--user", "nobody", "--pidfile", "pid")
    binds = ("--bind", "127.0.0.1:1023", "--bind", "unix:socket?mode=0666")
    with (
        exclusive_port(1023, socket.SOCK_STREAM),
        serve(open_path, *arguments, *binds, listens=3) as tree,
    ):
        assert tree.ask("os.getresuid() + os.getresgid()", 1) == (NOBODY,) * 6
        assert tree.ask("IMPORTED_AS", 2)[:3] == (NOBODY, NOBODY, NOBODY)
        with tree.client() as client:
            client.send(f"open({str(secret)!r})")
            assert client.at_end()
        tree.wait_for("PermissionError")
        # The arbiter stays who it was; the new generation drops its rights, too.
        assert os.stat(f"/proc/{tree.pid}").st_uid == 0
        deploy(open_path, 2)
        tree.reload()
        tree.until_ready(2, generation=2)
        assert tree.ask("(VERSION, os.geteuid())", 1) == (2, NOBODY)
        assert tree.stop() == 0
    assert not (open_path / "pid").exists()
    assert not (open_path / "socket").exists()


@as_root
@pytest.mark.parametrize("kind", ["serve", "script"])
def test_keys_are_read_before_rights_are_dropped(open_path: Path, kind: str) -> None:
    files = make_certificates(open_path)
    certificate, key = open_path / "own.crt", open_path / "own.key"
    deploy(open_path)
    (open_path / "script.py").write_text(
        "import app\n"
        "from pulsar.apps.socket import SocketServer\n"
        "if __name__ == '__main__':\n"
        "    SocketServer(app.App, name='shop').start()\n"
    )
    command = ["script.py"] if kind == "script" else [PULSAR, "serve", "app:App"]
    options = ("--cert-file", certificate, "--key-file", key, "--user", "nobody")

    def install(version: int) -> None:
        deploy(open_path, version)
        shutil.copy(files.server_cert if version == 1 else files.renewed_cert, certificate)
        shutil.copy(files.server_key if version == 1 else files.renewed_key, key)
        key.chmod(0o600)

    install(1)
    serials = set()
    with Tree(*command, *options, "--bind", "127.0.0.1:0", cwd=open_path) as tree:
        context = ssl.create_default_context(cafile=files.ca)
        for version in (1, 2):
            if version == 2:
                install(2)
                tree.reload()
                tree.until_ready(1, generation=2)
            with socket.create_connection(tree.address, PATIENCE) as plain:
                secure = context.wrap_socket(plain, server_hostname="localhost")
                serials.add(secure.getpeercert()["serialNumber"])
                with Client(secure) as client:
                    assert client.ask("(VERSION, os.geteuid())") == (version, NOBODY)
        assert len(serials) == 2
        assert tree.stop() == 0


# Logs


def test_log_files(tmp_path: Path) -> None:
    log = tmp_path / "log"
    deploy(tmp_path, more="import logging\nlogger = logging.getLogger('pulsar.shop')\n")
    arguments = ("--log-file", log, "--log-format", "json", "--workers", 2)
    with serve(tmp_path, *arguments, listens=0) as tree:
        until(lambda: log.exists() and " serves on " in log.read_text(), "it serves")
        [served] = records(log)
        assert (served["level"], served["pid"]) == ("info", tree.pid)
        address = str(served["message"]).partition(" serves on ")[2]
        workers = tree.workers()
        with Client.connect(address) as client:
            assert client.ask("logger.info('two\\nlines')") is None
            until(lambda: "two" in log.read_text(), "it is logged")
            assert records(log)[-1]["message"] == "two\nlines"
            assert records(log)[-1]["pid"] in workers
            log.rename(tmp_path / "log.1")
            tree.send(signal.SIGUSR1)
            # Everybody has the new one.
            for pid in (tree.pid, tree.forkserver, *workers):
                until(lambda: str(log) in opened(pid), "it is opened")  # noqa: B023 - at once
                assert str(tmp_path / "log.1") not in opened(pid)
            assert client.ask("logger.info('anew')") is None
            until(lambda: "anew" in log.read_text(), "it is logged")
        assert "anew" not in (tmp_path / "log.1").read_text()
        assert tree.stop() == 0
        assert tree.stderr == ""
    assert records(log)[-1]["message"] == "app:App has stopped"


def records(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_log_file_that_is_no_use_ends_the_start(tmp_path: Path) -> None:
    deploy(tmp_path)
    code, said = run_to_end(PULSAR, "serve", "app:App", "--log-file", "no/log", cwd=tmp_path)
    assert code == 3
    assert said.splitlines() == [
        f"app:App: error: cannot write the log file {tmp_path}/no/log: No such file or directory"
    ]


@as_root
def test_a_log_file_is_theirs_who_write_it(open_path: Path) -> None:
    log = open_path / "log"
    arguments = ("--log-file", log, "--user", "nobody")
    deploy(open_path, more="import logging\nlogger = logging.getLogger('pulsar.shop')\n")
    open_path.chmod(0o777)
    with serve(open_path, *arguments, listens=0) as tree:
        until(lambda: log.exists() and " serves on " in log.read_text(), "it serves")
        assert log.stat().st_uid == NOBODY
        log.rename(open_path / "log.1")
        tree.send(signal.SIGUSR1)
        for pid in (tree.pid, tree.forkserver, *tree.workers()):
            until(lambda: str(log) in opened(pid), "it is opened")  # noqa: B023 - at once
        assert log.stat().st_uid == NOBODY
        assert tree.stop() == 0


# systemd


@contextmanager
def manager(directory: Path) -> Iterator[socket.socket]:
    """A service manager that listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(directory / "notify"))
        sock.settimeout(PATIENCE)
        yield sock


def told(sock: socket.socket, wanted: str) -> dict[str, str]:
    """What the manager is told with the message that begins with ``wanted``."""
    while True:
        text = sock.recv(4096).decode()
        message = dict(line.split("=", 1) for line in text.splitlines())
        if wanted in message:
            return message


def test_systemd_is_told(tmp_path: Path) -> None:
    with manager(tmp_path) as sock:
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        deploy(tmp_path, more="NOTIFY = os.environ.get('NOTIFY_SOCKET')\n")
        with serve(tmp_path, "--workers", 2, env=env) as tree:
            assert told(sock, "READY")["STATUS"] == "2 workers serve, generation 1"
            told(sock, "WATCHDOG")
            told(sock, "WATCHDOG")
            assert tree.ask("NOTIFY") is None
            deploy(tmp_path, 2, more="NOTIFY = os.environ.get('NOTIFY_SOCKET')\n")
            tree.send(signal.SIGHUP)
            assert told(sock, "RELOADING")["MONOTONIC_USEC"].isdecimal()
            assert told(sock, "READY")["STATUS"] == "2 workers serve, generation 2"
            assert tree.ask("(VERSION, NOTIFY)") == (2, None)
            write(tmp_path / "app.py", "broken(\n")
            tree.send(signal.SIGHUP)
            told(sock, "RELOADING")
            assert told(sock, "READY")["STATUS"] == "2 workers serve, generation 2"
            tree.send(signal.SIGTERM)
            told(sock, "STOPPING")
            assert tree.wait() == 0


def test_sockets_of_systemd_survive_a_reload(tmp_path: Path) -> None:
    # Descriptor 3 is the first of those that systemd passes.
    with socket.create_server(("127.0.0.1", 0)) as sock:
        deploy(tmp_path)
        listen = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_FDS'] = '1'; "
            "os.environ['LISTEN_PID'] = str(os.getpid()); "
            "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
        )
        words = (PULSAR, "serve", "app:App", "--bind", "systemd:", "--workers", 2)
        with Tree(
            "-c", listen, sock.fileno(), *words, cwd=tmp_path, pass_fds=[sock.fileno()]
        ) as tree:
            assert tree.address == sock.getsockname()
            assert tree.who().version == 1
            deploy(tmp_path, 2)
            tree.reload()
            tree.until_ready(2, generation=2)
            assert tree.who().version == 2
            assert tree.stop() == 0
        # Whoever has passed it goes on listening: a connection waits.
        with Client.connect(f"127.0.0.1:{sock.getsockname()[1]}"):
            sock.accept()[0].close()


# Containers


def test_as_the_first_process_of_a_container(tmp_path: Path) -> None:
    unshare = require_program("unshare", "util-linux")
    command = [unshare, "--pid", "--fork", "--mount-proc", "--kill-child"]
    probe = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=PATIENCE)
    if probe.returncode:
        pytest.skip(f"no new PID namespace here: {probe.stderr.strip()}")
    deploy(
        tmp_path,
        more="import subprocess\n"
        "def orphan():\n"
        "    # A grandchild whose parent has gone, and which ends soon after.\n"
        "    out = subprocess.run(\n"
        "        ['sh', '-c', 'sleep 0.05 >/dev/null 2>&1 & echo $!'], capture_output=True\n"
        "    ).stdout\n"
        "    return int(out)\n",
    )
    program = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    with Tree(
        *("-c", program, *command, sys.executable, PULSAR),
        *("serve", "app:App", "--bind", "127.0.0.1:0", "--workers", 2),
        cwd=tmp_path,
    ) as tree:
        [first] = descendants_at(tree.pid, 1)
        assert tree.ask("os.getppid() != 1") is True
        orphan = tree.ask("orphan()")
        until(lambda: not tree.ask(f"os.path.exists('/proc/{orphan}')"), "it is reaped")
        below = descendants(first)
        assert len(below) == 3
        os.kill(first, signal.SIGTERM)
        assert tree.wait() == 0
        for pid in below:
            until(lambda: gone(pid), "it has gone")  # noqa: B023 - at once
        assert "SIGTERM: stopping gracefully" in tree.stderr


def descendants_at(pid: int, depth: int) -> list[int]:
    found = [pid]
    for _ in range(depth):
        found = [
            int(child)
            for parent in found
            for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        ]
    return found


# The control socket


def test_a_control_socket_at_a_path(tmp_path: Path) -> None:
    with serve(tmp_path, "--control", "control", "--workers", 2) as tree:
        path = tmp_path / "control"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        done = subprocess.run(
            [sys.executable, PULSAR, "status", "--control", "control"],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        assert "2 of 2 workers ready" in done.stdout
        assert tree.stop() == 0
        assert not path.exists()


def test_what_people_ask_a_server(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", 2, "--keep-alive", 9) as tree:
        tree.until_ready(2)
        listed = tree.command("status")
        assert listed.returncode == 0
        for pid in (tree.pid, tree.forkserver, *tree.workers()):
            assert str(pid) in listed.stdout
        assert "2 of 2 workers ready, 0 restarted" in listed.stdout
        told = json.loads(tree.command("status", "--json").stdout)
        assert told["applications"][0]["slots"][1]["state"] == "running"
        config = tree.command("config")
        assert "# flag --keep-alive" in config.stdout
        everybody = subprocess.run(
            [sys.executable, PULSAR, "ps"],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        [line] = [line for line in everybody.stdout.splitlines() if str(tree.pid) in line]
        assert "app:App  running  2/2" in " ".join(line.split()).replace(" ", "  ")
        assert tree.addresses[0] in line
