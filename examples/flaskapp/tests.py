"""The guest book: as Flask tests it, and served."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from examples.flaskapp.manage import create_app, server
from pulsar.apps.wsgi import WSGIServer
from tests.support.process import EXAMPLES, PATIENCE, ServerProcess

MANAGE = EXAMPLES / "flaskapp/manage.py"


def test_the_server_is_an_application(tmp_path: Path) -> None:
    application = server(
        "mine", database=tmp_path / "guests", load_config=False, bind=":0", thread_workers=1
    )
    assert isinstance(application, WSGIServer)
    assert (application.name, application.cfg.thread_workers) == ("mine", 1)


def test_the_application(tmp_path: Path) -> None:
    client = create_app(tmp_path / "guests").test_client()
    assert "<li>" not in client.get("/").text
    assert client.post("/", data={"text": "<b>me</b>"}).status_code == 303
    assert "<li>&lt;b&gt;me&lt;/b&gt;</li>" in client.get("/").text
    assert client.post("/").status_code == 400


@pytest.mark.parametrize("threads", ["0", "4"])
def test_many_guests_at_once(tmp_path: Path, threads: str) -> None:
    options = ("--bind", "127.0.0.1:0", "--workers", "2", "--threads", threads)
    with ServerProcess(MANAGE, *options, cwd=tmp_path) as process:
        url = f"http://{process.addresses[0]}/"

        def sign(guest: int) -> None:
            with httpx.Client(timeout=PATIENCE, follow_redirects=True) as client:
                for number in range(5):
                    text = f"guest {guest}, {number}. time"
                    assert f"<li>{text}</li>" in client.post(url, data={"text": text}).text

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(sign, range(4)))
        assert httpx.get(url, timeout=PATIENCE).text.count("<li>") == 20
