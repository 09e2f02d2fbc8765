"""Flask, Django, Bottle and Falcon under ``pulsar serve``, driven by httpx and by curl."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.process import PATIENCE, clean_environment
from tests.support.programs import require_program
from tests.support.tree import PULSAR, Tree

HERE = Path(__file__).parent / "frameworks"
SIZE = 2_500_000


class Framework:
    """A framework's application, served."""

    def __init__(self, name: str, threads: int, directory: Path) -> None:
        self.name = name
        self.threads = threads
        self.directory = directory
        self.content = os.urandom(SIZE)
        (directory / "file").write_bytes(self.content)
        self.env = {
            "DOWNLOAD": str(directory / "file"),
            "DATABASE": str(directory / "database"),
        }
        if name == "django":
            subprocess.run(
                [sys.executable, "django_app.py"],
                cwd=HERE,
                env={**clean_environment(), **self.env},
                check=True,
            )
        self.tree = Tree(
            *(PULSAR, "serve", f"{name}_app:app", "--chdir", HERE, "--bind", "127.0.0.1:0"),
            *("--workers", 2, "--threads", threads),
            cwd=directory,
            env=self.env,
        )

    @property
    def url(self) -> str:
        return f"http://{self.tree.addresses[0]}"

    def digest_of(self, content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("name", "threads"), [("flask", 4), ("django", 0), ("django", 4), ("bottle", 0), ("falcon", 0)]
)
def test_a_framework(name: str, threads: int, tmp_path: Path) -> None:
    curl = require_program("curl", "curl")
    served = Framework(name, threads, tmp_path)
    with served.tree as tree:
        tree.until_ready(2)
        with httpx.Client(base_url=served.url, timeout=PATIENCE) as client:
            pages(client, served)
            bodies(client, served)
            files(client, served)
            errors(client)
            if name in {"flask", "django"}:
                async_views(client)
            if name == "django":
                admin(client)
        workers(served)
        for check in (curl_gets, curl_sends, curl_keeps_its_connection):
            check(curl, served)
        # Errors of the application are in the log, and that is all.
        said = tree.stderr
        assert tree.stop(signal.SIGTERM) == 0
        assert said.count("Traceback") == said.count("ValueError: an error of the application's")
        assert said.count("Traceback") > 0


# httpx


def pages(client: httpx.Client, served: Framework) -> None:
    for _ in range(20):
        answer = client.get("/")
        assert (answer.status_code, answer.text) == (200, "hello")
    assert answer.headers["server"].startswith("pulsar/")
    answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    answer = client.get("/environ?a=%20b&c=caf%C3%A9")
    seen = answer.json()
    assert seen["query"] == {"a": " b", "c": "caf\xe9"}
    assert (seen["scheme"], seen["remote"]) == ("http", "127.0.0.1")
    assert seen["host"] == served.tree.addresses[0]
    assert (seen["multithread"], seen["multiprocess"]) == (served.threads > 1, True)
    for count in range(3):
        assert client.get("/cookie").text == str(count)
    assert client.get("/redirect").status_code == 302
    assert client.get("/redirect", follow_redirects=True).text == "hello"
    assert client.get("/missing").status_code == 404
    assert client.post("/", content=b"x" * 100_000).status_code in {403, 405, 404, 200}
    assert client.get("/").text == "hello"


def bodies(client: httpx.Client, served: Framework) -> None:
    for content in (b"", b"x", b"x" * 100_000, served.content):
        assert client.post("/echo", content=content).content == content
    for pieces in ([], [b"one"], [b"one", b"two" * 50_000, b"three"]):
        # In chunks.
        assert client.put("/echo", content=iter(pieces)).content == b"".join(pieces)
    for count in (0, 1, 20_000):
        wanted = "".join(f"line {number}\n" for number in range(count))
        assert client.get(f"/stream?lines={count}").text == wanted
    # Away in the middle.
    with client.stream("GET", "/stream?lines=10000000") as answer:
        assert next(answer.iter_bytes()).startswith(b"line 0\n")
    assert client.get("/").text == "hello"


def files(client: httpx.Client, served: Framework) -> None:
    for size in (0, 10, SIZE):
        content = served.content[:size]
        upload = {"upload": ("name.bin", content, "application/octet-stream")}
        answer = client.post("/form", data={"name": "caf\xe9"}, files=upload)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "name": "caf\xe9",
            "filename": "name.bin",
            "size": size,
            "digest": served.digest_of(content),
        }
    answer = client.get("/download")
    assert answer.headers["content-length"] == str(SIZE)
    assert "file.bin" in answer.headers["content-disposition"]
    assert answer.content == served.content
    answer = client.head("/download")
    assert answer.content == b""


def errors(client: httpx.Client) -> None:
    for _ in range(2):
        answer = client.get("/error")
        assert answer.status_code == 500
        assert "ValueError" not in answer.text
    assert client.get("/").text == "hello"


def async_views(client: httpx.Client) -> None:
    """In a WSGI application they run in a loop of their own."""
    for _ in range(3):
        assert client.get("/async").text == "later"


def admin(client: httpx.Client) -> None:
    """Django's admin pages: the login, and what is behind it."""
    answer = client.get("/admin/", follow_redirects=True)
    assert answer.url.path == "/admin/login/"
    [token] = re.findall('name="csrfmiddlewaretoken" value="(.+?)"', answer.text)
    data = {"username": "admin", "password": "secret", "csrfmiddlewaretoken": token}
    answer = client.post(answer.url, data={**data, "password": "wrong"})
    assert "Please enter the correct username" in answer.text
    answer = client.post(answer.url, data=data)
    assert (answer.status_code, answer.headers["location"]) == (302, "/admin/")
    assert "Site administration" in client.get("/admin/").text
    answer = client.get("/admin/auth/user/")
    assert "admin@example.com" in answer.text
    [token] = re.findall('name="csrfmiddlewaretoken" value="(.+?)"', answer.text)[:1]
    answer = client.post("/admin/logout/", data={"csrfmiddlewaretoken": token})
    assert "Logged out" in answer.text


def workers(served: Framework) -> None:
    """Both serve."""
    pids = set()
    for _ in range(500):
        pids.add(httpx.get(f"{served.url}/environ", timeout=PATIENCE).json()["pid"])
        if len(pids) == 2:
            break
    assert pids == set(served.tree.workers())


# curl


def run_curl(curl: str, *arguments: str) -> bytes:
    done = subprocess.run(
        [curl, "--silent", "--show-error", "--fail", "--max-time", "30", *arguments],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl_gets(curl: str, served: Framework) -> None:
    for options in ([], ["--http1.0"], ["--compressed"], ["-H", "Connection: close"]):
        assert run_curl(curl, *options, served.url) == b"hello"
        assert run_curl(curl, *options, f"{served.url}/download") == served.content
        assert run_curl(curl, *options, f"{served.url}/stream?lines=3") == b"".join(lines(3))
    assert b"200 OK" in run_curl(curl, "--head", served.url)


def lines(count: int) -> Iterator[bytes]:
    return (b"line %d\n" % number for number in range(count))


def curl_sends(curl: str, served: Framework) -> None:
    file = f"@{served.directory / 'file'}"
    echo = f"{served.url}/echo"
    # It waits for 100 Continue, for as long as that takes.
    waits = ["-H", "Expect: 100-continue", "--expect100-timeout", "30"]
    chunks = ["-H", "Transfer-Encoding: chunked"]
    for options in ([], waits, chunks, [*waits, *chunks], ["--http1.0"]):
        if "--http1.0" in options or "-H" not in options:
            options = [*options, "-H", "Expect:"]
        assert run_curl(curl, *options, "--data-binary", file, echo) == served.content
    assert run_curl(curl, *waits, "--upload-file", file[1:], echo) == served.content
    sent = run_curl(curl, "-F", "name=me", "-F", f"upload={file}", f"{served.url}/form")
    assert served.digest_of(served.content).encode() in sent


def curl_keeps_its_connection(curl: str, served: Framework) -> None:
    urls = [f"{served.url}/{path}" for path in ("", "stream?lines=5", "cookie", "")]
    told: list[Any] = ["--write-out", "[%{num_connects}]"]
    assert run_curl(curl, *told, *urls) == (
        b"hello[1]" + b"".join(lines(5)) + b"[0]" + b"0[0]" + b"hello[0]"
    )
