"""A Django project in one file, with what test_frameworks.py asks for, and the admin pages.

``python django_app.py`` makes its database, with the user ``admin``.
"""

import asyncio
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["DATABASE"],
            "OPTIONS": {"timeout": 30},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
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
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    STATIC_URL="static/",
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "loggers": {"django.request": {"handlers": ["stderr"], "level": "ERROR"}},
    },
)
django.setup()

from django.contrib import admin  # noqa: E402 - the settings come first
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import (  # noqa: E402
    FileResponse,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.shortcuts import redirect  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402

FILE = Path(os.environ["DOWNLOAD"])


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def environ(request: HttpRequest) -> HttpResponse:
    return JsonResponse(
        {
            "pid": os.getpid(),
            "query": request.GET.dict(),
            "scheme": request.scheme,
            "host": request.get_host(),
            "remote": request.META["REMOTE_ADDR"],
            "multithread": request.META["wsgi.multithread"],
            "multiprocess": request.META["wsgi.multiprocess"],
        }
    )


@csrf_exempt
def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.read())


@csrf_exempt
def form(request: HttpRequest) -> HttpResponse:
    upload = request.FILES["upload"]
    content = b"".join(upload.chunks())
    return JsonResponse(
        {
            "name": request.POST["name"],
            "filename": upload.name,
            "size": len(content),
            "digest": hashlib.sha256(content).hexdigest(),
        }
    )


def download(request: HttpRequest) -> HttpResponseBase:
    return FileResponse(FILE.open("rb"), as_attachment=True, filename="file.bin")


def stream(request: HttpRequest) -> HttpResponseBase:
    def lines() -> Iterator[str]:
        for number in range(int(request.GET["lines"])):
            yield f"line {number}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def cookie(request: HttpRequest) -> HttpResponse:
    seen = int(request.COOKIES.get("seen", "0"))
    response = HttpResponse(str(seen))
    response.set_cookie("seen", str(seen + 1))
    return response


def redirected(request: HttpRequest) -> HttpResponse:
    return redirect("/")


def error(request: HttpRequest) -> HttpResponse:
    raise ValueError("an error of the application's")


async def later(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0.001)
    return HttpResponse("later")


urlpatterns = [
    path("admin/", admin.site.urls),
    path("", hello),
    path("environ", environ),
    path("echo", echo),
    path("form", form),
    path("download", download),
    path("stream", stream),
    path("cookie", cookie),
    path("redirect", redirected),
    path("error", error),
    path("async", later),
]

app = get_wsgi_application()


def make_database() -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    User.objects.create_superuser("admin", "admin@example.com", "secret")


if __name__ == "__main__":
    sys.modules["django_app"] = sys.modules["__main__"]
    make_database()
