"""The requests of the HTTP scenarios, written to ``build/`` for the load generator."""

from pathlib import Path

HOST = "Host: 127.0.0.1:8060\r\n"

# Ten header fields, a cookie and a query, as a browser sends them.
BROWSER = (
    "GET /shop/items?category=books&page=2&sort=price HTTP/1.1\r\n"
    "Host: www.example.com\r\n"
    "Connection: keep-alive\r\n"
    'sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24"\r\n'
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/140.0.0.0 Safari/537.36\r\n"
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8\r\n"
    "Sec-Fetch-Mode: navigate\r\n"
    "Referer: https://www.example.com/shop/\r\n"
    "Accept-Encoding: gzip, deflate, br\r\n"
    "Accept-Language: en-GB,en;q=0.9,de;q=0.7\r\n"
    "Cookie: session=3f1c0a7e9b5d4e6f8a2b1c0d9e8f7a6b; theme=dark; _ga=GA1.1.1234567890\r\n"
    "\r\n"
)

# load.c writes numbers in here: that of the request, and that of a user.
VARIED = BROWSER.replace("page=2", "item=########").replace(
    "session=3f1c0a7e9b5d4e6f8a2b1c0d", "session=~~~~~~~~"
)

REQUESTS = {
    "hello": f"GET / HTTP/1.1\r\n{HOST}\r\n",
    "page": f"GET /page HTTP/1.1\r\n{HOST}\r\n",
    "echo": f"POST /echo HTTP/1.1\r\n{HOST}Content-Type: application/octet-stream\r\n"
    f"Content-Length: 10240\r\n\r\n{'x' * 10240}",
    "browser": BROWSER,
    "varied": VARIED,
    "unique": VARIED.replace("Cookie:", "X-Request-Id: 9b5d4e6f8a2b1c0d########\r\nCookie:"),
}


def write(directory: Path, name: str) -> Path:
    """Write the request ``name`` to a file in ``directory``."""
    path = directory / f"{name}.http"
    path.write_bytes(REQUESTS[name].encode("ascii"))
    return path
