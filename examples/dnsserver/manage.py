"""A DNS server for one small zone, over UDP and over TCP: one answer, two protocols.

Run ``python manage.py udp`` and, in another shell, ``python manage.py tcp``; ask with
``dig -p 8060 @localhost www.example.org``, or with dnspython. dnspython reads and writes
the messages, and knows the zone.
"""

import sys

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.zone

from pulsar import DatagramProtocol, ProtocolConsumer
from pulsar.apps.socket import SocketServer, UdpSocketServer
from pulsar.framing import LengthFramer

ZONE = dns.zone.from_text(
    """\
$TTL 3600
@       SOA    ns hostmaster 1 7200 900 1209600 300
@       NS     ns
@       MX     10 mail
ns      A      192.0.2.53
www     A      192.0.2.80
www     AAAA   2001:db8::80
mail    A      192.0.2.25
alias   CNAME  www
$GENERATE 1-200 many A 192.0.2.$
""",
    origin="example.org",
    relativize=False,
)

# The largest answer over UDP: without EDNS (RFC 1035), and what passes every network with it.
CLASSIC_PAYLOAD = 512
EDNS_PAYLOAD = 1232


class DnsUdp(DatagramProtocol):
    """A datagram is a query; one answer goes back, cut short where it does not fit."""

    def datagram_received(self, data, addr):
        response = respond(data, udp=True)
        if response is not None:
            self.sendto(response, addr)


class DnsTcp(ProtocolConsumer):
    """A query behind its length in two bytes; the next query has its own consumer."""

    def connection_made(self, connection):
        self.framer = LengthFramer(2, max_size=65535)

    def data_received(self, data):
        query, rest = self.framer.split(data)
        if query is not None:
            response = respond(query)
            if response is not None:
                self.write(self.framer.encode(response))
            self.finished(query)
        return rest

    def eof_received(self):
        self.connection.close()  # in the middle of a query: the rest will never come


def respond(data, udp=False):
    """The bytes that answer the bytes of a query; None for what is not one."""
    try:
        query = dns.message.from_wire(data)
    except dns.message.ShortHeader:
        return None  # no id to answer to
    except Exception:
        # dnspython's own errors, and whatever else a malicious message brings about.
        query = None
    if data[2] & 0x80:
        return None  # a response: answering it could go on for ever
    if query is None:
        # The id and the opcode of the query, no questions.
        return data[:2] + bytes([0x80 | data[2] & 0x78, dns.rcode.FORMERR]) + bytes(8)
    response = dns.message.make_response(query, our_payload=EDNS_PAYLOAD)
    response.set_rcode(resolve(query, response))
    if not udp:
        return response.to_wire(max_size=65535)
    asked = query.payload if query.edns >= 0 else CLASSIC_PAYLOAD
    room = max(CLASSIC_PAYLOAD, min(asked, EDNS_PAYLOAD))
    return response.to_wire(max_size=room, prefer_truncation=True)


def resolve(query, response):
    """Fill in the answer to ``query``; returns the response code."""
    if query.opcode() != dns.opcode.QUERY:
        return dns.rcode.NOTIMP
    if len(query.question) != 1:
        return dns.rcode.FORMERR
    [question] = query.question
    name = question.name
    if question.rdclass != dns.rdataclass.IN or not name.is_subdomain(ZONE.origin):
        return dns.rcode.REFUSED
    response.flags |= dns.flags.AA
    alias = ZONE.get_rrset(name, dns.rdatatype.CNAME)
    if alias is not None and question.rdtype != dns.rdatatype.CNAME:
        response.answer.append(alias)
        name = alias[0].target
    found = ZONE.get_rrset(name, question.rdtype)
    if found is not None:
        response.answer.append(found)
        return dns.rcode.NOERROR
    response.authority.append(ZONE.get_rrset(ZONE.origin, dns.rdatatype.SOA))
    return dns.rcode.NOERROR if ZONE.get_node(name) is not None else dns.rcode.NXDOMAIN


def udp(**kwargs):
    """The server that answers datagrams."""
    return UdpSocketServer(DnsUdp, name="dns-udp", **kwargs)


def tcp(**kwargs):
    """The server that answers on connections."""
    return SocketServer(DnsTcp, name="dns-tcp", **kwargs)


if __name__ == "__main__":
    servers = {"udp": udp, "tcp": tcp}
    if len(sys.argv) < 2 or sys.argv[1] not in servers:
        sys.exit("usage: python manage.py udp|tcp [options]")
    servers[sys.argv.pop(1)]().start()
