"""A guest book with Flask, kept in a database that all workers share.

Run it with ``python manage.py``, and open http://127.0.0.1:8060 in a browser. The database is
``guestbook.db`` in the working directory. Asking it takes time, during which a request must
not hold up the others: so the application runs in threads.
"""

import sqlite3
from contextlib import closing

from flask import Flask, redirect, render_template_string, request

from pulsar.apps.wsgi import WSGIServer

PAGE = """
<!doctype html>
<title>Guest book</title>
<form method="post">
<input name="text" maxlength="200" required autofocus> <button>Sign</button>
</form>
<ol>{% for text in texts %}<li>{{ text }}</li>{% endfor %}</ol>
"""


def create_app(database="guestbook.db"):
    app = Flask(__name__)

    def execute(statement, *values):
        with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS guests (text TEXT NOT NULL)")
            return connection.execute(statement, values).fetchall()

    @app.get("/")
    def guests():
        rows = execute("SELECT text FROM guests ORDER BY rowid")
        return render_template_string(PAGE, texts=[text for (text,) in rows])

    @app.post("/")
    def sign():
        execute("INSERT INTO guests VALUES (?)", request.form["text"][:200])
        return redirect("/", 303)

    return app


def server(name=None, description=None, database="guestbook.db", **kwargs):
    """The ``WSGIServer`` with the guest book."""
    return WSGIServer(
        create_app(database),
        name=name or "guestbook",
        description=description or "A guest book with Flask",
        **{"thread_workers": 4, **kwargs},
    )


if __name__ == "__main__":
    server().start()
