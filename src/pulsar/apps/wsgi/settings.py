"""The settings of WSGI servers (``app = "wsgi"``), beside those of sockets.

Owns: their declarations. Importing the module declares them.
Leaves: what the values do to the server that copies them.
"""

from ...config import (
    Setting,
    file_path,
    non_negative_int,
    positive_int,
    positive_seconds,
    size,
    text,
)
from ...net import network
from .access import COMBINED, access_format
from .request_id import id_header
from .trust import FORWARDED_HEADERS


def log_path(value: object) -> str:
    """The path of a file, or ``-``."""
    return "-" if value == "-" else file_path(value)


def mount_point(value: object) -> str:
    """A path that begins with a slash, or nothing."""
    path = text(value)
    if path and not path.startswith("/"):
        raise ValueError("give a path that begins with a slash")
    return path


def threads(value: object) -> int | str:
    """A number of threads, ``auto``, or ``auto:NUMBER``."""
    kind, colon, number = value.strip().partition(":") if isinstance(value, str) else ("", "", "")
    try:
        if kind != "auto":
            return non_negative_int(value)
        return f"auto:{positive_int(number)}" if colon else kind
    except ValueError as exc:
        raise ValueError(f"{exc}, or auto, or auto:NUMBER") from exc


class ThreadWorkers(Setting):
    name = "thread_workers"
    app = "wsgi"
    section = "HTTP"
    flags = ("--threads", "--thread-workers")
    metavar = "NUMBER|auto|auto:NUMBER"
    validator = threads
    default = 0
    change = "new workers"
    desc = """
        How many threads of a worker run the application. 0: it runs on the event loop, one
        request at a time in each worker, which is the fastest as long as it does not wait. auto:
        requests run on the loop where those like them have been quick, and otherwise in one of 8
        threads, or as many as stand behind the colon.
        """


class RootPath(Setting):
    name = "root_path"
    app = "wsgi"
    section = "HTTP"
    flags = ("--root-path",)
    metavar = "PATH"
    validator = mount_point
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


class ForwardedAllowIps(Setting):
    name = "forwarded_allow_ips"
    app = "wsgi"
    section = "HTTP"
    flags = ("--forwarded-allow-ips",)
    metavar = "NETWORK"
    validator = network
    multiple = True
    default = ()
    change = "new workers"
    desc = """
        The proxies that are believed what they say of their clients, in the headers that
        forwarded_header names: addresses, networks such as 10.0.0.0/8, unix for whoever connects
        by a Unix socket, or * for anybody, where only proxies can connect.
        """


class ForwardedHeader(Setting):
    name = "forwarded_header"
    app = "wsgi"
    section = "HTTP"
    flags = ("--forwarded-header",)
    choices = FORWARDED_HEADERS
    default = "x-forwarded"
    change = "new workers"
    desc = """
        What proxies say it in: x-forwarded, the headers X-Forwarded-For, -Proto and -Host;
        forwarded, the header of RFC 7239. The others are ignored: a proxy passes them on as the
        client has sent them.
        """


class RequestIdHeader(Setting):
    name = "request_id_header"
    app = "wsgi"
    section = "HTTP"
    flags = ("--request-id-header",)
    metavar = "HEADER"
    validator = id_header
    change = "new workers"
    desc = """
        The header that names requests, such as X-Request-ID. One that comes without a name, or
        with none of 1 to 128 letters, digits and -._~:+/=@, is given one; the application, the
        response and the access log have it, too. Unset: the header means nothing to us.
        """


class AccessLog(Setting):
    name = "access_log"
    app = "wsgi"
    section = "Logging"
    flags = ("--access-log",)
    metavar = "PATH"
    validator = log_path
    change = "new workers"
    desc = """
        Write a line for each request to this file, or, with -, to standard output. Unset: there
        is no access log. A file that is moved away is opened anew within a second.
        """


class AccessLogFormat(Setting):
    name = "access_log_format"
    app = "wsgi"
    section = "Logging"
    flags = ("--access-log-format",)
    metavar = "FORMAT"
    validator = access_format
    default = COMBINED
    change = "new workers"
    desc = """
        What the lines of the access log look like: json, or a text with gunicorn's atoms, such as
        %(h)s for the address of the client, %(r)s for the request line, %(s)s for the status,
        %(D)s for the microseconds that it took.
        """
