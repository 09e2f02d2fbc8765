"""A Django site with its admin and users: as WSGI, and as a protocol around the same callable."""

import asyncio
import io
import sys

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a benchmark",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
)
django.setup()

from django.contrib import admin  # noqa: E402 - not before the settings


def hello(request):
    """The only page beside the admin's."""
    return HttpResponse("Hello, World!\n", content_type="text/plain")


urlpatterns = [path("", hello), path("admin/", admin.site.urls)]
application = get_wsgi_application()


class Served(asyncio.Protocol):
    """As much of HTTP as the load of this benchmark needs."""

    def connection_made(self, transport):
        self.transport = transport
        self.head = b""

    def data_received(self, data):
        self.head += data
        if self.head.endswith(b"\r\n\r\n"):
            method, target, _ = self.head.split(maxsplit=2)
            self.transport.write(answer(method.decode(), target.decode()))
            self.transport.close()


def answer(method, target):
    """The answer to a request without a body."""
    head = []

    def start_response(status, headers, exc_info=None):
        head.extend([f"HTTP/1.1 {status}", "Connection: close"])
        head.extend(f"{name}: {value}" for name, value in headers)

    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": target,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    response = application(environ, start_response)
    body = b"".join(response)
    response.close()
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body
