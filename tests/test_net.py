"""The grammar of addresses: tables of what is accepted, what is refused, and how."""

import socket
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulsar.errors import ImproperlyConfigured
from pulsar.net import Bind, Networks, connect_address, format_address, network, parse_bind

linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract names exist on Linux only")


# Binds

ACCEPTED = [
    ("example.org", Bind("inet", "example.org", 8060)),
    ("localhost:80", Bind("inet", "localhost", 80)),
    ("127.0.0.1:8070", Bind("inet", "127.0.0.1", 8070)),
    ("127.0.0.1", Bind("inet", "127.0.0.1", 8060)),
    (":8080", Bind("inet", "", 8080)),
    (":0", Bind("inet", "", 0)),
    (":65535", Bind("inet", "", 65535)),
    ("my_host-1.local:1", Bind("inet", "my_host-1.local", 1)),
    ("[::1]:8060", Bind("inet", "::1", 8060)),
    ("[::1]", Bind("inet", "::1", 8060)),
    ("[::]:0", Bind("inet", "::", 0)),
    ("[fe80::1%eth0]:80", Bind("inet", "fe80::1%eth0", 80)),
    (":443?tls=on", Bind("inet", "", 443, tls=True)),
    (":443?tls=off", Bind("inet", "", 443, tls=False)),
    ("tcp://127.0.0.1:80", Bind("tcp", "127.0.0.1", 80)),
    ("tcp://localhost", Bind("tcp", "localhost", 8060)),
    ("tcp://[::1]:80?tls=on", Bind("tcp", "::1", 80, tls=True)),
    ("udp://:53", Bind("udp", "", 53)),
    ("unix:/run/x.sock", Bind("unix", path="/run/x.sock")),
    ("unix:///run/x.sock", Bind("unix", path="/run/x.sock")),
    ("unix:////run//x.sock", Bind("unix", path="/run//x.sock")),
    ("unix:x.sock", Bind("unix", path="x.sock")),
    ("unix:./@x", Bind("unix", path="./@x")),
    ("unix:/run/x:y.sock", Bind("unix", path="/run/x:y.sock")),
    (
        "unix:/run/x.sock?mode=0660&user=www&group=33&tls=on",
        Bind("unix", path="/run/x.sock", mode=0o660, user="www", group="33", tls=True),
    ),
    ("unix:///x?mode=600", Bind("unix", path="/x", mode=0o600)),
    pytest.param("unix:@name", Bind("unix", path="@name"), marks=linux),
    pytest.param("unix:@name?tls=on", Bind("unix", path="@name", tls=True), marks=linux),
    ("fd://3", Bind("fd", fd=3)),
    ("fd://0?tls=on", Bind("fd", fd=0, tls=True)),
    ("systemd:", Bind("systemd")),
    ("systemd", Bind("systemd")),
    ("tcp://unix:80", Bind("tcp", "unix", 80)),
    ("systemd:?tls=on", Bind("systemd", tls=True)),
    (
        ":80?proxy_protocol=on&tls=off",
        Bind("inet", "", 80, tls=False, proxy_protocol=True),
    ),
    ("unix:/x?proxy_protocol=on", Bind("unix", path="/x", proxy_protocol=True)),
    ("fd://3?proxy_protocol=off", Bind("fd", fd=3)),
]


@pytest.mark.parametrize(("text", "expected"), ACCEPTED)
def test_a_bind_is_parsed_and_printed(text: str, expected: Bind) -> None:
    bind = parse_bind(text)
    assert bind == expected
    assert parse_bind(str(bind)) == bind


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("127.0.0.1", "127.0.0.1:8060"),
        ("[::1]", "[::1]:8060"),
        ("udp://:53", "udp://:53"),
        ("tcp://h?tls=off", "tcp://h:8060?tls=off"),
        ("unix:///run/x?group=g&user=u&mode=660", "unix:/run/x?mode=0660&user=u&group=g"),
        ("fd://03", "fd://3"),
        ("systemd:", "systemd:"),
    ],
)
def test_the_canonical_text_is_complete(text: str, canonical: str) -> None:
    assert str(parse_bind(text)) == canonical


def test_the_default_port_is_the_callers() -> None:
    assert parse_bind("localhost", default_port=25) == Bind("inet", "localhost", 25)
    assert parse_bind("udp://[::1]", default_port=53) == Bind("udp", "::1", 53)
    assert parse_bind(":0", default_port=53) == Bind("inet", "", 0)


REFUSED = [
    ("", "the address is empty"),
    (":", "port '' is not a number from 0 to 65535"),
    ("localhost:", "port '' is not a number from 0 to 65535"),
    ("8080", "a port alone is written ':8080'"),
    ("localhost:http", "port 'http' is not a number from 0 to 65535"),
    (":65536", "port '65536' is not a number from 0 to 65535"),
    (":-1", "port '-1' is not a number from 0 to 65535"),
    (":٣", "port '٣' is not a number from 0 to 65535"),
    (":80 ", "port '80 ' is not a number from 0 to 65535"),
    ("::1", "an IPv6 address is written in brackets, '[::1]'"),
    ("::1:8060", "an IPv6 address is written in brackets, '[::1:8060]'"),
    ("[::1", "'[::1' is not of the form [IPV6]:PORT"),
    ("[::1]8060", "'[::1]8060' is not of the form [IPV6]:PORT"),
    ("[localhost]:80", "'localhost' is not an IPv6 address"),
    ("[]:80", "'' is not an IPv6 address"),
    ("*:80", "'*' is not a host name or address"),
    ("a b:80", "'a b' is not a host name or address"),
    ("-x:80", "'-x' is not a host name or address"),
    ("host\0:80", "'host\\x00' is not a host name or address"),
    ("/run/x.sock", "a path is written 'unix:/run/x.sock'"),
    ("tcp://", "the address is empty"),
    ("tcp://0.0.0.0:80/", "a path is written"),
    ("http://localhost:80", "unknown scheme 'http'"),
    ("tpc://localhost:80", "unknown scheme 'tpc', did you mean 'tcp'?"),
    ("unx:///run/x", "unknown scheme 'unx', did you mean 'unix'?"),
    ("inet://localhost", "unknown scheme 'inet'"),
    ("unix:", "the path is missing"),
    ("unix:@", "the path is missing"),
    ("unix", "the path is missing"),
    ("systemd:3", "nothing follows 'systemd:'"),
    ("unix://", "an absolute path has three slashes"),
    ("unix://run/x", "an absolute path has three slashes, 'unix:///run/x'"),
    ("unix:/a\0b", "a path has no NUL character"),
    ("unix:/x?mode=rw", "option 'mode' is octal like 0660, not 'rw'"),
    ("unix:/x?mode=1777", "option 'mode' is octal like 0660, not '1777'"),
    ("unix:/x?mode=0o660", "option 'mode' is octal like 0660, not '0o660'"),
    ("unix:/x?mode", "option 'mode' has no value"),
    ("unix:/x?user=", "option 'user' has no value"),
    ("unix:/x?mod=660", "unknown option 'mod', did you mean 'mode'?"),
    ("unix:/x?owner=me", "unknown option 'owner'"),
    ("unix:/x?", "unknown option ''"),
    ("unix:/x?user=a&user=b", "option 'user' is given twice"),
    (":80?tls=yes", "option 'tls' is 'on' or 'off', not 'yes'"),
    (":80?tsl=on", "unknown option 'tsl', did you mean 'tls'?"),
    (":80?mode=660", "option 'mode' has no meaning here"),
    ("udp://:53?tls=on", "option 'tls' has no meaning here"),
    ("udp://:53?proxy_protocol=on", "option 'proxy_protocol' has no meaning here"),
    (":80?proxy_protocol=v2", "option 'proxy_protocol' is 'on' or 'off', not 'v2'"),
    (":80?proxy-protocol=on", "unknown option 'proxy-protocol', did you mean 'proxy_protocol'?"),
    ("fd://", "'' is not a descriptor number"),
    ("fd://x", "'x' is not a descriptor number"),
    ("fd://-1", "'-1' is not a descriptor number"),
    ("fd://3?user=me", "option 'user' has no meaning here"),
    pytest.param("unix:@x?mode=660", "an abstract name has no file", marks=linux),
]


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_what_is_no_bind_is_refused_in_one_sentence(text: str, why: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        parse_bind(text)
    message = str(caught.value)
    assert message.startswith(f"bind {text!r}: {why}")
    assert message.endswith(
        "accepted are HOST, HOST:PORT, :PORT, [IPV6]:PORT, tcp://HOST:PORT, "
        "udp://HOST:PORT, unix:PATH, fd://N and systemd:"
    )
    assert "\n" not in message
    assert caught.value.__suppress_context__


@pytest.mark.skipif(sys.platform == "linux", reason="abstract names are accepted on Linux")
def test_abstract_names_are_refused_elsewhere() -> None:
    with pytest.raises(ImproperlyConfigured, match="abstract names exist on Linux only"):
        parse_bind("unix:@name")


def check_round_trip(text: str) -> None:
    try:
        bind = parse_bind(text)
    except ImproperlyConfigured:
        return
    assert parse_bind(str(bind)) == bind


@settings(deadline=None)
@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    check_round_trip(text)


@settings(deadline=None)
@given(
    st.sampled_from(["", "tcp://", "udp://", "unix:", "unix://", "fd://", "systemd:"]),
    st.text(alphabet="@/[]:.-01a?=&", max_size=12),
    st.sampled_from(["", "?tls=on", "?mode=0660", "?user=a&group=b"]),
)
def test_what_looks_like_a_bind_is_parsed_or_refused(
    scheme: str, address: str, options: str
) -> None:
    check_round_trip(scheme + address + options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":80", None),
        ("tcp://:80", socket.SOCK_STREAM),
        ("udp://:80", socket.SOCK_DGRAM),
        ("unix:/x", socket.SOCK_STREAM),
        ("fd://3", None),
        ("systemd:", None),
    ],
)
def test_a_bind_demands_the_type_that_its_text_names(
    text: str, expected: socket.SocketKind | None
) -> None:
    assert parse_bind(text).type == expected


def test_a_bind_is_a_value() -> None:
    assert len({parse_bind(":80"), parse_bind(":80"), parse_bind(":81")}) == 2


# What clients connect to


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("localhost", 8060), ("localhost", 8060)),
        (["localhost", 8060], ("localhost", 8060)),
        (("::1", 8060, 0, 0), ("::1", 8060)),
        ("localhost:8060", ("localhost", 8060)),
        ("[::1]:8060", ("::1", 8060)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
        ("unix:/run/x.sock", "/run/x.sock"),
        ("unix:///run/x.sock", "/run/x.sock"),
        ("unix:x.sock", "x.sock"),
        ("/run/x.sock", "/run/x.sock"),
        ("\0name", "\0name"),
        (b"\0name", "\0name"),
        pytest.param("unix:@name", "\0name", marks=linux),
    ],
)
def test_a_client_address_is_parsed(address: object, expected: object) -> None:
    assert connect_address(address) == expected


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("localhost", "a port from 1 to 65535 is missing"),
        ("localhost:0", "a port from 1 to 65535 is missing"),
        (("localhost", 0), "a port from 1 to 65535 is missing"),
        (("localhost", 65536), "a port from 1 to 65535 is missing"),
        (("localhost", -1), "a port from 1 to 65535 is missing"),
        (("", 80), "the host is missing"),
        (":80", "the host is missing"),
        ("8060", "a port alone is written ':8060'"),
        ("::1", "an IPv6 address is written in brackets"),
        ("unix:", "the path is missing"),
        ("tcp://localhost:80", "it is a server's bind"),
        ("systemd:", "it is a server's bind"),
        ("http://localhost", "unknown scheme 'http'"),
        (("localhost", "80"), "it is neither a text nor a (host, port) tuple"),
        (("localhost",), "it is neither a text nor a (host, port) tuple"),
        (8060, "it is neither a text nor a (host, port) tuple"),
        (None, "it is neither a text nor a (host, port) tuple"),
    ],
)
def test_what_no_client_can_connect_to_is_refused(address: object, why: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        connect_address(address)
    message = str(caught.value)
    assert message.startswith(f"address {address!r}: {why}")
    assert message.endswith("accepted are (HOST, PORT), 'HOST:PORT', '[IPV6]:PORT' and 'unix:PATH'")


# How addresses are shown


@pytest.mark.parametrize(
    ("sockname", "shown"),
    [
        (("127.0.0.1", 8060), "127.0.0.1:8060"),
        (("::1", 8060, 0, 0), "[::1]:8060"),
        (["fe80::1%eth0", 1, 0, 2], "[fe80::1%eth0]:1"),
        ("/run/x.sock", "unix:/run/x.sock"),
        (b"\0name", "unix:@name"),
        ("\0name", "unix:@name"),
        (b"\0\xff", "unix:@\\xff"),
        ("", "unix:"),
        (None, "-"),
    ],
)
def test_an_address_is_shown_to_people(sockname: object, shown: str) -> None:
    assert format_address(sockname) == shown


@pytest.mark.parametrize("text", ["127.0.0.1:8060", "[::1]:8060", "unix:/run/x.sock"])
def test_what_is_shown_can_be_connected_to(text: str) -> None:
    assert format_address(connect_address(text)) == text


def test_who_belongs_to_networks() -> None:
    networks = Networks(["10.0.0.0/24", "2001:db8::/32", "192.0.2.1"])
    for address in ("10.0.0.255", "2001:db8::1", "192.0.2.1", "::ffff:10.0.0.1"):
        assert address in networks, address
    for address in ("10.0.1.1", "2001:db9::1", "192.0.2.2", "", "nonsense", "10.0.0.1.1"):
        assert address not in networks, address
    assert "" in Networks(["unix"])
    assert "10.0.0.1" not in Networks(["unix"])
    everybody = Networks(["*"])
    assert all(address in everybody for address in ("", "10.0.0.1", "::1"))
    # A peer with many addresses costs no memory.
    for number in range(5000):
        assert f"10.1.{number // 256}.{number % 256}" not in networks
    assert len(networks._known) <= 1024


def test_a_network_is_written_as_an_address_or_with_a_mask() -> None:
    for good in ("10.0.0.0/8", "10.0.0.1", "::1", "unix", "*"):
        assert network(good)
    for bad in ("10.0.0.1/8", "localhost", "", "10.0.0"):
        with pytest.raises(ValueError, match="give an IP address"):
            network(bad)
