"""A Flask application with what test_frameworks.py asks for."""

import asyncio
import hashlib
import os

from flask import Flask, Response, jsonify, redirect, request, send_file

FILE = os.environ["DOWNLOAD"]

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return "hello"


@app.get("/environ")
def environ() -> Response:
    return jsonify(
        pid=os.getpid(),
        query=request.args.to_dict(),
        scheme=request.scheme,
        host=request.host,
        remote=request.remote_addr,
        multithread=request.environ["wsgi.multithread"],
        multiprocess=request.environ["wsgi.multiprocess"],
    )


@app.route("/echo", methods=["POST", "PUT"])
def echo() -> bytes:
    return request.get_data()


@app.post("/form")
def form() -> Response:
    upload = request.files["upload"]
    content = upload.read()
    return jsonify(
        name=request.form["name"],
        filename=upload.filename,
        size=len(content),
        digest=hashlib.sha256(content).hexdigest(),
    )


@app.get("/download")
def download() -> Response:
    return send_file(FILE, as_attachment=True, download_name="file.bin")


@app.get("/stream")
def stream() -> Response:
    lines = (f"line {number}\n" for number in range(int(request.args["lines"])))
    return Response(lines, mimetype="text/plain")


@app.get("/cookie")
def cookie() -> Response:
    seen = int(request.cookies.get("seen", "0"))
    response = Response(str(seen))
    response.set_cookie("seen", str(seen + 1))
    return response


@app.get("/redirect")
def redirected() -> Response:
    return redirect("/")  # type: ignore[return-value]


@app.get("/error")
def error() -> str:
    raise ValueError("an error of the application's")


@app.get("/async")
async def later() -> str:
    await asyncio.sleep(0.001)
    return "later"
