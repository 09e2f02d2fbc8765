"""The DNS server, asked by dnspython's queries and its resolver."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.dnsserver.manage import EDNS_PAYLOAD, respond
from tests.support.plain import connect, read, read_to_the_end
from tests.support.process import EXAMPLES, PATIENCE, ServerProcess

HERE = EXAMPLES / "dnsserver"
HOST = "127.0.0.1"

Ask = Callable[[dns.message.Message], dns.message.Message]


@dataclass
class Servers:
    """Both servers, at one port."""

    tcp: ServerProcess
    udp: ServerProcess
    port: int

    @property
    def resolver(self) -> dns.resolver.Resolver:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = [HOST]
        resolver.port = self.port
        resolver.lifetime = PATIENCE
        return resolver

    def ask_udp(self, query: dns.message.Message) -> dns.message.Message:
        return dns.query.udp(query, HOST, PATIENCE, self.port)

    def ask_tcp(self, query: dns.message.Message) -> dns.message.Message:
        return dns.query.tcp(query, HOST, PATIENCE, self.port)


def two_sockets() -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket at the same port, which nobody else can take."""
    while True:
        tcp, udp = socket.create_server((HOST, 0)), socket.socket(type=socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
        else:
            return tcp, udp


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    def start(kind: str, sock: socket.socket) -> ServerProcess:
        bind = ("--bind", f"fd://{sock.fileno()}", "--event-loop", request.param)
        return ServerProcess("manage.py", kind, *bind, cwd=HERE, pass_fds=[sock.fileno()])

    tcp, udp = two_sockets()
    with tcp, udp, start("tcp", tcp) as tcp_server, start("udp", udp) as udp_server:
        port = tcp.getsockname()[1]
        tcp.close()
        udp.close()
        yield Servers(tcp_server, udp_server, port)


@pytest.fixture(params=["udp", "tcp"])
def ask(request: pytest.FixtureRequest, servers: Servers) -> Ask:
    return servers.ask_udp if request.param == "udp" else servers.ask_tcp


def test_an_answer(ask: Ask) -> None:
    response = ask(dns.message.make_query("www.example.org", "A"))
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    assert [rrset.to_text() for rrset in response.answer] == [
        "www.example.org. 3600 IN A 192.0.2.80"
    ]


def test_a_name_that_does_not_exist(ask: Ask) -> None:
    response = ask(dns.message.make_query("nobody.example.org", "A"))
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert response.answer == []
    assert response.authority[0].rdtype == dns.rdatatype.SOA


@pytest.mark.parametrize(
    ("name", "kind", "options", "rcode"),
    [
        ("www.example.com", "A", {}, dns.rcode.REFUSED),
        ("www.example.org", "A", {"rdclass": "CH"}, dns.rcode.REFUSED),
        ("WWW.Example.ORG", "AAAA", {}, dns.rcode.NOERROR),
        ("www.example.org", "TXT", {}, dns.rcode.NOERROR),
    ],
)
def test_response_codes(
    ask: Ask, name: str, kind: str, options: dict[str, str], rcode: int
) -> None:
    assert ask(dns.message.make_query(name, kind, **options)).rcode() == rcode


def test_other_operations_are_not_implemented(ask: Ask) -> None:
    query = dns.message.make_query("www.example.org", "A")
    query.set_opcode(dns.opcode.NOTIFY)
    assert ask(query).rcode() == dns.rcode.NOTIMP


def test_the_resolver_finds_what_there_is(servers: Servers) -> None:
    resolve = servers.resolver.resolve
    assert [item.address for item in resolve("www.example.org", "AAAA")] == ["2001:db8::80"]
    assert [item.exchange.to_text() for item in resolve("example.org", "MX")] == [
        "mail.example.org."
    ]
    alias = resolve("alias.example.org", "A")
    assert (alias.canonical_name.to_text(), alias[0].address) == ("www.example.org.", "192.0.2.80")
    with pytest.raises(dns.resolver.NXDOMAIN):
        resolve("nobody.example.org", "A")
    with pytest.raises(dns.resolver.NoAnswer):
        resolve("mail.example.org", "AAAA")


def test_what_does_not_fit_into_a_datagram_is_cut_and_asked_for_over_tcp(servers: Servers) -> None:
    query = dns.message.make_query("many.example.org", "A")
    response, over_tcp = dns.query.udp_with_fallback(query, HOST, PATIENCE, servers.port)
    assert over_tcp
    assert len(response.answer[0]) == 200
    assert len(servers.resolver.resolve("many.example.org", "A")) == 200


# UDP


def test_edns_is_answered_within_our_payload(servers: Servers) -> None:
    query = dns.message.make_query("many.example.org", "A", use_edns=0, payload=4096)
    response = servers.ask_udp(query)
    assert response.flags & dns.flags.TC
    assert len(response.to_wire()) <= EDNS_PAYLOAD
    assert response.edns == 0


def test_malformed_datagrams_are_ignored_or_refused_and_others_answered(servers: Servers) -> None:
    query = dns.message.make_query("www.example.org", "A").to_wire()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((HOST, servers.port))
        sock.send(b"")
        sock.send(b"short")
        sock.send(query[:2] + b"\x81" + query[3:])  # a response
        sock.send(query[:-3])
        assert sock.recv(512) == query[:2] + b"\x80\x01" + bytes(8)  # FORMERR
        sock.send(query)
        assert len(dns.message.from_wire(sock.recv(512)).answer) == 1
    assert "Traceback" not in servers.udp.stderr


# TCP


def test_pipelined_queries_are_answered_in_order(servers: Servers) -> None:
    queries = [
        dns.message.make_query(name, "A", id=number)
        for number in range(100)
        for name in ("www.example.org", "nobody.example.org")
    ]
    with connect((HOST, servers.port)) as sock:
        sock.sendall(b"".join(query.to_wire(prepend_length=True) for query in queries))
        responses = [dns.query.receive_tcp(sock)[0] for _ in queries]
    assert all(
        query.is_response(response) for query, response in zip(queries, responses, strict=True)
    )


def test_one_byte_at_a_time(servers: Servers) -> None:
    query = dns.message.make_query("www.example.org", "A")
    with connect((HOST, servers.port)) as sock:
        for byte in query.to_wire(prepend_length=True):
            sock.send(bytes([byte]))
        assert query.is_response(dns.query.receive_tcp(sock)[0])


def test_a_malformed_query_is_refused_and_the_next_one_answered(servers: Servers) -> None:
    query = dns.message.make_query("www.example.org", "A")
    with connect((HOST, servers.port)) as sock:
        # Too short for an id, then one that stops in the middle of its question.
        sock.sendall(b"\0\0" + b"\0\2ab" + b"\0\15\1\2\1\0\0\1\0\0\0\0\0\0\77")
        assert read(sock, 14) == b"\0\14\1\2\x80\1" + bytes(8)
        dns.query.send_tcp(sock, query)
        assert query.is_response(dns.query.receive_tcp(sock)[0])


def test_a_client_that_ends_in_the_middle_of_a_query_is_let_go(servers: Servers) -> None:
    with connect((HOST, servers.port)) as sock:
        sock.sendall(b"\0\50half")
        sock.shutdown(socket.SHUT_WR)
        assert read_to_the_end(sock) == b""
    assert "Traceback" not in servers.tcp.stderr


# Without a server


@st.composite
def damaged_queries(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(["www", "alias", "many", "nobody"])) + ".example.org"
    wire = bytearray(dns.message.make_query(name, "A", use_edns=0).to_wire())
    for _ in range(draw(st.integers(0, 4))):
        wire[draw(st.integers(0, len(wire) - 1))] = draw(st.integers(0, 255))
    return bytes(wire[: draw(st.integers(0, len(wire)))])


@given(damaged_queries() | st.binary(max_size=40))
def test_whatever_comes_is_answered_with_a_message_or_not_at_all(data: bytes) -> None:
    for udp in (True, False):
        response = respond(data, udp)
        if response is not None:
            assert dns.message.from_wire(response).id == int.from_bytes(data[:2])


def test_without_a_choice_the_usage_is_shown() -> None:
    run = subprocess.run([sys.executable, "manage.py"], cwd=HERE, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "usage: python manage.py udp|tcp [options]\n")
