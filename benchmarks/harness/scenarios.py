"""What is measured: the kinds of load, who is loaded, and how little we want to cost.

Owns: the list of scenarios and the goals.
Leaves: the servers' commands to ``peers``, the bytes of requests to ``requests``, running all
of it to ``run.py``.
"""

from dataclasses import dataclass

from . import peers
from .peers import Peer


@dataclass(frozen=True)
class Goal:
    """What ``server`` may cost at most, next to others in the same run.

    ``against`` names them; of several it is the cheapest that counts. ``at_most`` is a ratio,
    or, where ``added`` is set, a difference in microseconds.
    """

    server: str
    against: tuple[str, ...]
    at_most: float
    added: bool = False


@dataclass(frozen=True)
class Scenario:
    """A kind of load: the generator's mode, how many connections, and bytes per message.

    Servers are compared with ``floor`` and with ``baseline``. ``request`` names one of
    ``requests``, for servers that speak HTTP.
    """

    about: str
    mode: str
    connections: int = 64
    size: int = 64
    rounds: int = 10
    peers: tuple[Peer, ...] = peers.TCP
    floor: str = "floor"
    baseline: str = "uvloop"
    request: str = ""
    options: tuple[str, ...] = ()
    tls: bool = False
    goals: tuple[Goal, ...] = ()

    @property
    def datagrams(self) -> bool:
        """Whether the servers listen on UDP."""
        return self.mode.startswith("udp")


GRANIAN = ("granian",)
GRANIANS = ("granian", "granian-rsgi", "granian-asgi")


def _http(
    about: str,
    application: str,
    *goals: Goal,
    request: str = "",
    options: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
) -> Scenario:
    return Scenario(
        about,
        "http",
        rounds=5,
        peers=tuple(peer for peer in peers.http(application) if peer.name not in without),
        floor="canned",
        baseline="granian",
        request=request or application,
        options=options,
        goals=goals,
    )


SCENARIOS = {
    "tcp64": Scenario("TCP echo of 64 B", "tcp"),
    "tcp64k": Scenario("TCP echo of 64 KiB", "tcp", size=65536),
    "churn": Scenario("connect, one message of 64 B, close", "churn"),
    "udp64": Scenario(
        "UDP echo of 64 B, one datagram in flight per socket", "udp", peers=peers.UDP
    ),
    "udp70": Scenario(
        "UDP echo of 64 B at 70 % of the baseline's top rate", "udp-open", peers=peers.UDP
    ),
    "idle": Scenario("memory per idle connection", "idle", connections=5000, rounds=3),
    "http-hello": _http(
        "HTTP, GET of 13 B",
        "hello",
        Goal("pulsar", GRANIAN, 0.80),
        Goal("pulsar", ("bjoern",), 1.40),
        Goal("pulsar", ("canned",), 1.75),
        Goal("pulsar-log", ("pulsar",), 2.0, added=True),
        Goal("pulsar-threads", ("gunicorn",), 0.25),
        Goal("pulsar-threads", GRANIAN, 2.0),
    ),
    "http-pipelined": _http(
        "HTTP, GET of 13 B, 16 requests at a time",
        "hello",
        Goal("pulsar", GRANIANS, 0.70),
        options=("--pipeline=16",),
        # bjoern answers only the first of them.
        without=("bjoern", "uwsgi"),
    ),
    "http-browser": _http(
        "HTTP, GET of 13 B, as a browser asks",
        "hello",
        Goal("pulsar", GRANIAN, 0.80),
        request="browser",
    ),
    "http-varied": _http(
        "HTTP, GET of 13 B, as browsers ask: each time for something else",
        "hello",
        request="varied",
        options=("--vary",),
    ),
    "http-unique": _http(
        "the same behind a proxy that numbers requests in a field",
        "hello",
        request="unique",
        options=("--vary",),
    ),
    "http-page": _http("HTTP, GET of 64 KiB", "page", Goal("pulsar", GRANIAN, 0.80)),
    "http-echo": _http(
        "HTTP, POST of 10 KiB, which comes back",
        "echo",
        Goal("pulsar", GRANIAN, 0.85),
        # They know nothing of bodies.
        without=("uvloop", "nginx"),
    ),
    "http-tls": Scenario(
        "HTTP, GET of 13 B over TLS 1.3",
        "http",
        rounds=5,
        peers=peers.https("hello"),
        floor="uvloop",
        baseline="granian",
        request="hello",
        options=("--tls",),
        tls=True,
        goals=(Goal("pulsar", ("uvloop",), 1.25),),
    ),
    "http-idle": Scenario(
        "memory per idle HTTP connection",
        "idle",
        connections=5000,
        rounds=3,
        # A connection has a thread of uWSGI to itself.
        peers=tuple(peer for peer in peers.http("hello") if peer.name != "uwsgi"),
        floor="canned",
        baseline="canned",
        request="hello",
        goals=(Goal("pulsar", ("canned",), 1.6),),
    ),
}
