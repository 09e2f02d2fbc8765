"""A Bottle application with what test_frameworks.py asks for."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bottle
from bottle import request, response

FILE = Path(os.environ["DOWNLOAD"])

app = bottle.Bottle()


@app.get("/")
def hello() -> str:
    return "hello"


@app.get("/environ")
def environ() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "query": dict(request.query.decode()),
        "scheme": request.urlparts.scheme,
        "host": request.urlparts.netloc,
        "remote": request.environ["REMOTE_ADDR"],
        "multithread": request.environ["wsgi.multithread"],
        "multiprocess": request.environ["wsgi.multiprocess"],
    }


@app.route("/echo", method=["POST", "PUT"])
def echo() -> bytes:
    body: bytes = request.body.read()
    return body


@app.post("/form")
def form() -> dict[str, Any]:
    upload = request.files["upload"]
    content = upload.file.read()
    return {
        "name": request.forms["name"],
        "filename": upload.raw_filename,
        "size": len(content),
        "digest": hashlib.sha256(content).hexdigest(),
    }


@app.get("/download")
def download() -> Any:
    return bottle.static_file(FILE.name, root=FILE.parent, download="file.bin")


@app.get("/stream")
def stream() -> Iterator[str]:
    response.content_type = "text/plain"
    for number in range(int(request.query["lines"])):
        yield f"line {number}\n"


@app.get("/cookie")
def cookie() -> str:
    seen = int(request.get_cookie("seen", "0"))
    response.set_cookie("seen", str(seen + 1))
    return str(seen)


@app.get("/redirect")
def redirected() -> None:
    bottle.redirect("/", 302)


@app.get("/error")
def error() -> str:
    raise ValueError("an error of the application's")
