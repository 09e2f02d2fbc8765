"""nginx with answers of its own, in one process.

python nginx.py PORT hello|page [CERTIFICATE KEY]

Whatever is asked for, ``hello`` says ``return 200``, and ``page`` is a file.
"""

import os
import sys
from pathlib import Path

from apps import HELLO, PAGE

DIRECTORY = Path(__file__).resolve().parent.parent / "build/nginx"

CONFIG = """
daemon off;
master_process off;
worker_rlimit_nofile 20000;
pid {directory}/pid;
error_log stderr;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    open_file_cache max=10;
    server {{
        listen 127.0.0.1:{port} {tls};
        root {directory};
        default_type text/plain;
        location / {{ {answer} }}
    }}
}}
"""


def config(port: str, application: str, files: list[str]) -> str:
    """The configuration; writes the file that it serves."""
    (DIRECTORY / "page").write_bytes(PAGE)
    answers = {"hello": f'return 200 "{HELLO.decode()}";', "page": "try_files /page =404;"}
    tls = ""
    if files:
        tls = f"ssl; ssl_certificate {files[0]}; ssl_certificate_key {files[1]}"
        tls += "; ssl_protocols TLSv1.3"
    values = {"directory": DIRECTORY, "port": port, "tls": tls, "answer": answers[application]}
    return CONFIG.format(**values)


if __name__ == "__main__":
    port, application, *files = sys.argv[1:]
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / "nginx.conf"
    path.write_text(config(port, application, files))
    os.execvp("nginx", ["nginx", "-e", "stderr", "-c", str(path)])
