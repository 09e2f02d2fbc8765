"""A drop box with Django: files are uploaded, listed and downloaded.

Run it with ``python manage.py``, and open http://127.0.0.1:8060 in a browser. Files are kept
in ``files`` in the working directory; DJANGO_SECRET_KEY is the key, which a server that
strangers can reach needs. A download is sent by the kernel, straight from the file.
"""

import os
from pathlib import Path

from django.conf import settings
from django.core.files.storage import FileSystemStorage
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, Http404, HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.urls import path

from pulsar.apps.wsgi import WSGIServer

settings.configure(
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "not a secret"),
    ALLOWED_HOSTS=os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(","),
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    MEDIA_ROOT=str(Path("files").resolve()),
)

PAGE = """
<!doctype html>
<title>Drop box</title>
<form method="post" enctype="multipart/form-data">
{% csrf_token %}<input type="file" name="file" required> <button>Upload</button>
</form>
<ul>
{% for name in names %}<li><a href="{% url 'download' name %}">{{ name }}</a></li>{% endfor %}
</ul>
"""


def box(request):
    storage = FileSystemStorage()
    if request.method == "POST" and "file" in request.FILES:
        storage.save(request.FILES["file"].name, request.FILES["file"])
        return redirect("box")
    names = sorted(storage.listdir("")[1]) if storage.exists("") else []
    return HttpResponse(engines["django"].from_string(PAGE).render({"names": names}, request))


def download(request, name):
    try:
        return FileResponse(FileSystemStorage().open(name), as_attachment=True)
    except FileNotFoundError:
        raise Http404 from None


urlpatterns = [path("", box, name="box"), path("files/<str:name>", download, name="download")]
application = get_wsgi_application()


def server(name=None, description=None, **kwargs):
    """The ``WSGIServer`` with the drop box."""
    return WSGIServer(
        application,
        name=name or "dropbox",
        description=description or "A drop box with Django",
        **{"thread_workers": 4, **kwargs},
    )


if __name__ == "__main__":
    server().start()
