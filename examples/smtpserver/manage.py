"""An SMTP server that keeps what it is sent: aiosmtpd's protocol, hosted as it is.

Run it with ``python manage.py --maildir DIRECTORY``, and send it a message with
``smtplib.SMTP("localhost", 8060).send_message(...)``. All that belongs to sockets and
processes (addresses, TLS, limits, the drain) is pulsar's; all that is SMTP is aiosmtpd's.
"""

import socket
from functools import partial

from aiosmtpd.handlers import Debugging, Mailbox
from aiosmtpd.smtp import SMTP

from pulsar import Setting
from pulsar.apps.socket import SocketServer
from pulsar.tls import server_context


class Maildir(Setting):
    name = "maildir"
    app = "smtp"
    section = "Mail"
    flags = ("--maildir",)
    metavar = "DIRECTORY"
    desc = "The maildir that messages are put into; made if need be. Unset: they are printed."


class Starttls(Setting):
    name = "starttls"
    app = "smtp"
    section = "Mail"
    flags = ("--starttls",)
    metavar = "PATH"
    desc = """
        Offer STARTTLS, with the private key and the certificate in this PEM file. TLS from the
        first byte is what --cert-file is for.
        """


class SmtpServer(SocketServer):
    """Receive mail over SMTP."""

    cfg_apps = ("socket", "smtp")

    def protocol_factory(self):
        cfg = self.cfg
        return partial(
            SMTP,
            Mailbox(cfg.maildir) if cfg.maildir else Debugging(),
            tls_context=server_context(cfg.starttls) if cfg.starttls else None,
            # Looked up here: otherwise it is for every connection, and that blocks.
            hostname=socket.gethostname(),
        )


def server(**kwargs):
    """The ``SmtpServer``, with settings as keywords."""
    return SmtpServer(name="smtp", **kwargs)


if __name__ == "__main__":
    server().start()
