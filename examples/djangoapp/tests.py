"""The drop box: as Django tests it, and served."""

import os
import re
from pathlib import Path

import httpx
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client, override_settings

from examples.djangoapp.manage import server
from pulsar.apps.wsgi import WSGIServer
from tests.support.process import EXAMPLES, PATIENCE, ServerProcess

MANAGE = EXAMPLES / "djangoapp/manage.py"


def test_the_server_is_an_application() -> None:
    application = server("mine", load_config=False, bind=":0", thread_workers=1)
    assert isinstance(application, WSGIServer)
    assert (application.name, application.cfg.thread_workers) == ("mine", 1)


def test_the_application(tmp_path: Path) -> None:
    client = Client(SERVER_NAME="localhost")
    with override_settings(MEDIA_ROOT=str(tmp_path / "files")):
        assert b"<li>" not in client.get("/").content
        upload = {"file": SimpleUploadedFile("a <b>.txt", b"content")}
        assert client.post("/", upload).status_code == 302
        assert client.post("/").status_code == 200
        [url] = re.findall('href="(.+?)"', client.get("/").content.decode())
        answer = client.get(url)
        assert b"".join(answer.streaming_content) == b"content"
        answer.close()
        for url in ("/files/missing", "/files/..", "/files/../manage.py", "/files/%2e%2e%2fx"):
            assert client.get(url).status_code in {400, 404}


@pytest.mark.parametrize("threads", ["0", "4"])
def test_a_large_file_there_and_back(tmp_path: Path, threads: str) -> None:
    content = os.urandom(5_000_000)
    options = ("--bind", "127.0.0.1:0", "--workers", "2", "--threads", threads)
    with ServerProcess(MANAGE, *options, cwd=tmp_path) as process:
        url = f"http://{process.addresses[0]}"
        with httpx.Client(base_url=url, timeout=PATIENCE, follow_redirects=True) as client:
            [token] = re.findall('name="csrfmiddlewaretoken" value="(.+?)"', client.get("/").text)
            files = {"file": ("large.bin", content, "application/octet-stream")}
            assert client.post("/", files=files).status_code == 403
            page = client.post("/", data={"csrfmiddlewaretoken": token}, files=files)
            [path] = re.findall('href="(.+?)"', page.text)
            for _ in range(2):
                answer = client.get(path)
                assert answer.headers["content-length"] == str(len(content))
                assert answer.content == content
    assert [file.name for file in (tmp_path / "files").iterdir()] == ["large.bin"]
