"""The settings of WSGI servers (``app = "wsgi"``), beside those of sockets.

Owns: their declarations. Importing the module declares them.
Leaves: what the values do to the server that copies them.
"""

from ...config import Setting, non_negative_int, positive_int, positive_seconds, size, text


class ThreadWorkers(Setting):
    name = "thread_workers"
    app = "wsgi"
    section = "HTTP"
    flags = ("--threads", "--thread-workers")
    metavar = "NUMBER"
    validator = non_negative_int
    default = 0
    change = "new workers"
    desc = """
        How many threads of a worker run the application. 0: it runs on the event loop, one
        request at a time in each worker, which is the fastest as long as it does not wait.
        """


class RootPath(Setting):
    name = "root_path"
    app = "wsgi"
    section = "HTTP"
    flags = ("--root-path",)
    metavar = "PATH"
    validator = text
    default = ""
    change = "new workers"
    desc = """
        The path at which the application is mounted (SCRIPT_NAME), such as /shop: a request's
        path that begins with it loses it.
        """


class MaxBody(Setting):
    name = "max_body"
    app = "wsgi"
    section = "HTTP"
    flags = ("--max-body",)
    metavar = "BYTES"
    validator = size
    default = 1024**3
    change = "new workers"
    desc = """
        The largest body of a request, in bytes, or with K, M or G behind the number. A larger
        one is answered with 413.
        """


class LimitRequestLine(Setting):
    name = "limit_request_line"
    app = "wsgi"
    section = "HTTP"
    flags = ("--limit-request-line",)
    metavar = "BYTES"
    validator = positive_int
    default = 8190
    change = "new workers"
    desc = "The longest request line, in bytes. A longer one is answered with 414."


class LimitRequestFields(Setting):
    name = "limit_request_fields"
    app = "wsgi"
    section = "HTTP"
    flags = ("--limit-request-fields",)
    metavar = "NUMBER"
    validator = positive_int
    default = 100
    change = "new workers"
    desc = "How many header lines a request may have. More are answered with 431."


class LimitRequestFieldSize(Setting):
    name = "limit_request_field_size"
    app = "wsgi"
    section = "HTTP"
    flags = ("--limit-request-field-size",)
    metavar = "BYTES"
    validator = positive_int
    default = 8190
    change = "new workers"
    desc = "The longest header line, in bytes. A longer one is answered with 431."


class HeadTimeout(Setting):
    name = "head_timeout"
    app = "wsgi"
    section = "HTTP"
    flags = ("--head-timeout",)
    metavar = "SECONDS"
    validator = positive_seconds
    default = 30
    change = "new workers"
    desc = """
        How long the head of a request may take to arrive, from its first byte on. Later it is
        answered with 408.
        """


class ServerHeader(Setting):
    name = "server_header"
    app = "wsgi"
    section = "HTTP"
    flags = ("--server-header",)
    default = True
    is_flag = True
    change = "new workers"
    desc = "Say in each response, in the field Server, what serves it."
