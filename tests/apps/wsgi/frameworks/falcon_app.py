"""A Falcon application with what test_frameworks.py asks for."""

import hashlib
import os
from pathlib import Path

import falcon
from falcon import Request, Response

FILE = Path(os.environ["DOWNLOAD"])


class Hello:
    def on_get(self, req: Request, resp: Response) -> None:
        resp.text = "hello"

    on_head = on_get


class Environ:
    def on_get(self, req: Request, resp: Response) -> None:
        resp.media = {
            "pid": os.getpid(),
            "query": req.params,
            "scheme": req.scheme,
            "host": req.netloc,
            "remote": req.remote_addr,
            "multithread": req.env["wsgi.multithread"],
            "multiprocess": req.env["wsgi.multiprocess"],
        }


class Echo:
    def on_post(self, req: Request, resp: Response) -> None:
        resp.data = req.bounded_stream.read()

    on_put = on_post


class Form:
    def on_post(self, req: Request, resp: Response) -> None:
        found = {}
        for part in req.get_media():
            content = part.stream.read()
            if part.name == "name":
                found["name"] = content.decode()
            else:
                found["filename"] = part.filename
                found["size"] = len(content)
                found["digest"] = hashlib.sha256(content).hexdigest()
        resp.media = found


class Download:
    def on_get(self, req: Request, resp: Response) -> None:
        resp.set_stream(FILE.open("rb"), FILE.stat().st_size)
        resp.content_type = "application/octet-stream"
        resp.downloadable_as = "file.bin"

    on_head = on_get


class Stream:
    def on_get(self, req: Request, resp: Response) -> None:
        resp.content_type = "text/plain"
        count = req.get_param_as_int("lines", required=True)
        resp.stream = (f"line {number}\n".encode() for number in range(count))


class Cookie:
    def on_get(self, req: Request, resp: Response) -> None:
        seen = int(req.cookies.get("seen", "0"))
        resp.set_cookie("seen", str(seen + 1), secure=False)
        resp.text = str(seen)


class Redirect:
    def on_get(self, req: Request, resp: Response) -> None:
        raise falcon.HTTPFound("/")


class Error:
    def on_get(self, req: Request, resp: Response) -> None:
        raise ValueError("an error of the application's")


app = falcon.App()
for path, resource in {
    "/": Hello(),
    "/environ": Environ(),
    "/echo": Echo(),
    "/form": Form(),
    "/download": Download(),
    "/stream": Stream(),
    "/cookie": Cookie(),
    "/redirect": Redirect(),
    "/error": Error(),
}.items():
    app.add_route(path, resource)
