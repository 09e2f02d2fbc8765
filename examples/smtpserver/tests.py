"""The SMTP server, fed by smtplib; and aiosmtpd's protocol under faults, in this process."""

import mailbox
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from pulsar.apps.socket import SocketServer
from tests.support.certs import Certificates, certs
from tests.support.plain import connect
from tests.support.process import EXAMPLES, PATIENCE, ServerProcess
from tests.support.serving import serving

__all__ = ["certs"]

MIB = 1024 * 1024

Start = Callable[..., ServerProcess]


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    return tmp_path / "mail"


@pytest.fixture
def start(maildir: Path, loop_kind: str) -> Start:
    """Starts the example on each kind of loop, with the maildir of this test."""
    options = ("--bind", "127.0.0.1:0", "--maildir", maildir, "--event-loop", loop_kind)
    return partial(ServerProcess, "manage.py", *options, cwd=EXAMPLES / "smtpserver")


def client_to(server: ServerProcess) -> smtplib.SMTP:
    return smtplib.SMTP(*server.address, timeout=PATIENCE)


def message(subject: str, body: str) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "a@example.org", "b@example.org", subject
    made.set_content(body)
    return made


def received(maildir: Path) -> dict[str, str]:
    """The bodies of the messages in ``maildir``, by subject."""
    folder = mailbox.Maildir(maildir, create=False)
    return {kept["Subject"]: kept.get_payload() for kept in folder}


def test_messages_arrive(start: Start, maildir: Path) -> None:
    body = ".\n..\n.hidden\nlast line\n"
    with start() as server, client_to(server) as client:
        for number in range(5):
            assert client.send_message(message(f"number {number}", body)) == {}
    assert received(maildir) == {f"number {number}": body for number in range(5)}
    [kept, *_] = mailbox.Maildir(maildir)
    assert (kept["X-MailFrom"], kept["X-RcptTo"]) == ("a@example.org", "b@example.org")


def test_a_big_message_arrives(start: Start, maildir: Path) -> None:
    body = ("x" * 70 + "\n") * (5 * MIB // 71)
    with start() as server, client_to(server) as client:
        client.send_message(message("big", body))
    assert received(maildir) == {"big": body}


def test_clients_are_served_at_the_same_time(start: Start, maildir: Path) -> None:
    with start() as server:
        clients = [client_to(server) for _ in range(10)]
        # All have begun before any has ended.
        for client in clients:
            client.ehlo()
            client.mail("a@example.org")
            client.rcpt("b@example.org")
        for number, client in enumerate(clients):
            client.data(message(f"number {number}", "hello\n").as_bytes())
            client.quit()
    assert received(maildir).keys() == {f"number {number}" for number in range(10)}


def test_starttls(start: Start, maildir: Path, certs: Certificates) -> None:
    context = ssl.create_default_context(cafile=certs.ca)
    with start("--starttls", certs.server_bundle) as server:
        with client_to(server) as client:
            client.ehlo()
            assert client.has_extn("starttls")
            assert client.starttls(context=context)[0] == 220
            assert isinstance(client.sock, ssl.SSLSocket)
            client.send_message(message("secret", "x" * 70 + "\n"))
            client.send_message(message("big secret", ("x" * 70 + "\n") * 10_000))
        with client_to(server) as client:
            client.send_message(message("open", "hello\n"))
    assert received(maildir).keys() == {"secret", "big secret", "open"}


def test_tls_from_the_first_byte(start: Start, maildir: Path, certs: Certificates) -> None:
    context = ssl.create_default_context(cafile=certs.ca)
    with start("--cert-file", certs.server_bundle) as server:
        host, port = server.address
        with smtplib.SMTP_SSL(host, port, timeout=PATIENCE, context=context) as client:
            client.send_message(message("secret", "hello\n"))
    assert received(maildir) == {"secret": "hello\n"}


def test_a_client_that_vanishes_costs_nobody_else_anything(start: Start, maildir: Path) -> None:
    with start() as server:
        with client_to(server) as client, connect(server.address) as gone:
            gone.sendall(b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\nhal")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
            client.send_message(message("whole", "hello\n"))
        assert "Traceback" not in server.stderr
    assert received(maildir) == {"whole": "hello\n"}


def test_a_message_in_transfer_is_received_before_the_end(start: Start, maildir: Path) -> None:
    text = message("last", "hello\n" * 1000).as_bytes().replace(b"\n", b"\r\n")
    with start("--graceful-timeout", "20") as server, client_to(server) as client:
        client.ehlo()
        client.mail("a@example.org")
        client.rcpt("b@example.org")
        assert client.docmd("DATA")[0] == 354
        client.send(text[:1000])
        server.process.terminate()
        server.wait_for("stopping gracefully")
        client.send(text[1000:] + b".\r\n")
        assert client.getreply()[0] == 250
        assert server.wait() == 0
        client.close()
    assert received(maildir) == {"last": "hello\n" * 1000}


# The protocol with handlers of our own


class Failing:
    """Fails for a sender who asks for it; keeps the rest."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802
        if envelope.mail_from == "fail@example.org":
            raise ValueError("as you wish")
        self.kept.append(envelope.content)
        return "250 OK"


@pytest.fixture
def failing(loop_kind: str) -> Iterator[tuple[Failing, tuple[str, int]]]:
    handler = Failing()
    factory = partial(SMTP, handler, hostname="test", data_size_limit=1000)
    application = SocketServer(
        factory, load_config=False, bind="127.0.0.1:0", event_loop=loop_kind, log_level="error"
    )
    with serving(application):
        yield handler, application.address


def test_an_error_in_a_handler_is_the_client_s_answer_and_no_more(
    failing: tuple[Failing, tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    handler, address = failing
    with smtplib.SMTP(*address, timeout=PATIENCE) as client:
        with pytest.raises(smtplib.SMTPDataError) as caught:
            client.sendmail("fail@example.org", "b@example.org", b"lost")
        assert (caught.value.smtp_code, b"as you wish" in caught.value.smtp_error) == (500, True)
        # The same connection goes on.
        client.sendmail("a@example.org", "b@example.org", b"kept")
    assert handler.kept == [b"kept\r\n"]
    errors = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in errors if record.exc_info] == ["as you wish"]


def test_a_message_over_the_limit_is_refused(failing: tuple[Failing, tuple[str, int]]) -> None:
    handler, address = failing
    with smtplib.SMTP(*address, timeout=PATIENCE) as client:
        client.helo()  # or smtplib would look at the limit itself
        client.mail("a@example.org")
        client.rcpt("b@example.org")
        code, _ = client.data(b"a line\r\n" * 200)
        assert code == 552
        client.sendmail("a@example.org", "b@example.org", b"small")
    assert handler.kept == [b"small\r\n"]
