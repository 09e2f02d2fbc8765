"""Hello World! for every request: the smallest web application there is.

Run it with ``python manage.py``, and open http://127.0.0.1:8060 in a browser.
"""

from pulsar.apps import wsgi


def hello(environ, start_response):
    data = b"Hello World!"
    response_headers = [("Content-type", "text/plain"), ("Content-Length", str(len(data)))]
    start_response("200 OK", response_headers)
    return [data]


if __name__ == "__main__":
    wsgi.WSGIServer(hello).start()
