"""Who may import whom: the floors of the house, read from the sources themselves.

Every ``import`` counts, also those inside functions and under TYPE_CHECKING,
and so does ``import_module`` of a literal name.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.glob("pulsar/**/*.py"))
}

# Each part of the package may import from the floors below its own. Parts of
# one floor do not know each other, except on the ground floor.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "cpus",
            "doors",
            "errors",
            "events",
            "log",
            "net",
            "pidfile",
            "privileges",
            "sockets",
            "system",
            "tls",
            "version",
        }
    ),
    frozenset({"wire", "config", "protocols"}),
    frozenset({"clients"}),
    frozenset({"actors"}),
    frozenset({"application", "console"}),
    frozenset({"apps"}),
    frozenset({"target"}),
    frozenset({"cli", "testing"}),
    frozenset({"__main__"}),
)

# Doors: they hand on names to users, and nothing inside the house uses them.
# The package itself ("") hands on whatever it likes.
DOORS: dict[str, frozenset[str]] = {"framing": frozenset({"errors", "wire"})}

# Finer than floors: (from, to), as parts or as dotted modules below pulsar.
FORBIDDEN: dict[tuple[str, str], str] = {
    ("clients", "config"): "a client works in a bare asyncio program, without settings",
    ("apps.http", "actors"): "the HTTP client works without an arbiter",
    ("apps.http", "application"): "the HTTP client works without an arbiter",
}

# Which app may stand on which other.
APPS: dict[str, frozenset[str]] = {
    "socket": frozenset(),
    "wsgi": frozenset({"socket"}),
    "ws": frozenset({"wsgi"}),
    "http": frozenset(),
    "rpc": frozenset({"wsgi", "http"}),
}

# wire/ turns bytes into messages and back: no I/O, no loop, no clock, no logger.
WIRE_IMPORTS = frozenset({"errors", "wire"})
NOT_IN_WIRE = frozenset(
    {"asyncio", "logging", "select", "selectors", "socket", "ssl", "threading", "time", "uvloop"}
)

# (importing module, imported module): why it must be, though a rule forbids it.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("pulsar.protocols.proxied", "pulsar.wire.proxy_protocol"): (
        "the PROXY protocol is no protocol of its own, but says whose a connection is"
    ),
}


def imports_of(
    module: str, source: str, *, package: bool = False, types: bool = True
) -> Iterator[str]:
    """Yield the absolute dotted names that ``source`` imports; ``pulsar`` is the front door.

    For ``from a import b`` that is ``a.b``: b may be a module, and where it is
    not, the names of what is inside ``a`` obey the same rules as ``a``. Without
    ``types``, what only a type checker imports is left out.
    """
    parents = module.split(".") if package else module.split(".")[:-1]
    tree = ast.parse(source)
    if not types:
        tree = WithoutTypeChecking().visit(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    # `import pulsar.x` binds the name pulsar, and with it the front door.
                    binds_door = alias.name.startswith("pulsar.") and alias.asname is None
                    yield "pulsar" if binds_door else alias.name
            case ast.ImportFrom():
                start = parents[: len(parents) - node.level + 1] if node.level else []
                origin = ".".join([*start, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield "pulsar" if origin == "pulsar" else f"{origin}.{alias.name}"
            case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(node.func).endswith(("import_module", "__import__")):
                    yield name


class WithoutTypeChecking(ast.NodeTransformer):
    """Drops the bodies of ``if TYPE_CHECKING:``."""

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            node.body = [ast.Pass()]
        return self.generic_visit(node)


def violations(module: str, source: str, *, package: bool = False) -> list[str]:
    """Say what is wrong with the imports of ``module``, one sentence each."""
    found = []
    for name in imports_of(module, source, package=package):
        target = name.removesuffix(".*")
        if target != name:
            found.append(f"{module} imports everything of {target}: name what it needs.")
        if module == "pulsar" or is_exception(module, target):
            continue
        if reason := refusal(module, target):
            found.append(f"{module} imports {target}: {reason}.")
    return found


def is_exception(module: str, target: str) -> bool:
    return any((module, name) in EXCEPTIONS for name in (target, target.rpartition(".")[0]))


def refusal(module: str, target: str) -> str | None:
    """Return why ``module`` may not import ``target``, or None."""
    part, _, rest = module.removeprefix("pulsar.").partition(".")
    top, _, inner = target.partition(".")
    if top != "pulsar":
        if part == "wire" and top in NOT_IN_WIRE:
            return "wire/ has no I/O, no loop, no clock and no logger"
        return None
    if not inner:
        return "nothing inside uses the front door; import from the module that has it"
    wanted, _, below = inner.partition(".")
    if not {part, wanted} <= known_parts():
        return None  # test_every_part_has_a_floor says so
    if wanted == part:
        return between_apps(rest.partition(".")[0], below.partition(".")[0]) if below else None
    for (source, to), reason in FORBIDDEN.items():
        if is_in(module, source) and is_in(target, to):
            return reason
    if part == "wire" and wanted not in WIRE_IMPORTS:
        return "wire/ may import from errors only"
    if wanted in DOORS:
        return f"{wanted} is a door for users; import from the module that it re-exports"
    if part in DOORS:
        return None if wanted in DOORS[part] else f"{part} may import from {listed(DOORS[part])}"
    here, there = floor(part), floor(wanted)
    if there > here:
        return f"{wanted} is on floor {there}, above {part} on floor {here}"
    if there == here > 0:
        return f"{part} and {wanted} share floor {here} and do not know each other"
    return None


def between_apps(app: str, other: str) -> str | None:
    # Names in apps/__init__.py itself are no app.
    if not app or f"pulsar.apps.{other}" not in MODULES or app == other:
        return None
    if f"pulsar.apps.{app}" not in MODULES or other in APPS.get(app, ()):
        return None
    return f"the app {app} may stand on {listed(APPS.get(app, frozenset()))}"


def is_in(module: str, place: str) -> bool:
    return f"{module}.".startswith(f"pulsar.{place}.")


def known_parts() -> frozenset[str]:
    return frozenset().union(*FLOORS, DOORS)


def floor(part: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def listed(parts: frozenset[str]) -> str:
    return ", ".join(sorted(parts)) or "no other"


def read(module: str) -> str:
    return MODULES[module].read_text()


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    assert violations(module, read(module), package=is_package(module)) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_opens_with_a_docstring(module: str) -> None:
    assert ast.get_docstring(ast.parse(read(module))), (
        f"{module} needs a docstring: what it owns, what it leaves to others"
    )


def test_every_part_has_a_floor() -> None:
    parts = {module.split(".")[1] for module in MODULES if "." in module}
    homeless = parts - known_parts()
    assert not homeless, (
        f"{listed(frozenset(homeless))}: new in the package; give it a place in FLOORS (or DOORS) "
        "in tests/test_layers.py, as low as its imports allow, and in docs/design.md"
    )


def test_every_app_says_what_it_stands_on() -> None:
    apps = {
        module.split(".")[2]
        for module in MODULES
        if module.startswith("pulsar.apps.") and is_package(module)
    }
    assert apps <= APPS.keys(), (
        f"{listed(frozenset(apps - APPS.keys()))}: a new app; say in APPS in tests/test_layers.py "
        "on which other apps it may stand"
    )


def test_nothing_imports_in_a_circle() -> None:
    # Two classes of one part may name each other in annotations, as connection and consumer do.
    graph = {}
    for module in MODULES:
        targets = set()
        for name in imports_of(module, read(module), package=is_package(module), types=False):
            target = name if name in MODULES else name.rpartition(".")[0]
            if target in MODULES and target != module and not is_exception(module, target):
                targets.add(target)
        graph[module] = targets
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}", pytrace=False)


def test_exceptions_are_used_and_have_a_reason() -> None:
    for (module, target), reason in EXCEPTIONS.items():
        assert len(reason.split()) > 3, f"why may {module} import {target}?"
        imported = list(imports_of(module, read(module), package=is_package(module)))
        assert any(f"{name}.".startswith(f"{target}.") for name in imported), (
            f"{module} no longer imports {target}: drop the exception"
        )


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("pulsar.protocols.flow", "import pulsar", "front door"),
        ("pulsar.protocols.flow", "import pulsar.errors", "front door"),
        ("pulsar.protocols.flow", "from pulsar import Config", "front door"),
        ("pulsar.protocols.flow", "from pulsar import errors", "front door"),
        ("pulsar.protocols.flow", "from .. import Config", "front door"),
        ("pulsar.cli", "from . import Config", "front door"),
        ("pulsar.protocols.flow", "from pulsar.errors import *", "imports everything"),
        ("pulsar", "from pulsar.errors import *", "imports everything"),
        ("pulsar.wire.framing", "from struct import *", "imports everything"),
        ("pulsar.errors", "from pulsar.wire.framing import LineFramer", "on floor 1, above errors"),
        ("pulsar.protocols.flow", "from pulsar.config import Config", "do not know each other"),
        ("pulsar.config.values", "from pulsar.wire import framing", "do not know each other"),
        ("pulsar.protocols.flow", "from ..wire import framing", "do not know each other"),
        ("pulsar.protocols.flow", "from pulsar.clients import Pool", "on floor 2, above protocols"),
        ("pulsar.clients.pool", "from pulsar.config import Config", "bare asyncio program"),
        ("pulsar.clients.pool", "from pulsar.actors import x", "on floor 3, above clients"),
        ("pulsar.application", "from pulsar.apps.socket import x", "on floor 5"),
        ("pulsar.apps.socket.server", "from pulsar.cli import main", "on floor 7"),
        ("pulsar.apps.socket.server", "from pulsar.framing import LineFramer", "a door for users"),
        ("pulsar.apps.http.client", "from pulsar.actors import x", "without an arbiter"),
        ("pulsar.framing", "from pulsar.protocols import x", "may import from errors, wire"),
        ("pulsar.wire.framing", "from pulsar.log import get_logger", "from errors only"),
        ("pulsar.wire.framing", "import socket", "no I/O"),
        ("pulsar.wire.framing", "from asyncio import Future", "no I/O"),
        ("pulsar.wire.framing", "import logging.handlers", "no I/O"),
        ("pulsar.errors", "def f():\n    from pulsar.clients import Pool", "floor 2"),
        ("pulsar.errors", "if TYPE_CHECKING:\n    from pulsar.clients import Pool", "floor 2"),
        ("pulsar.errors", "import_module('pulsar.clients')", "floor 2"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str, reason: str) -> None:
    found = violations(module, source)
    assert len(found) == 1, found
    assert reason in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pulsar", "from pulsar.apps.socket import SocketServer"),
        ("pulsar.net", "from pulsar.errors import ImproperlyConfigured"),
        ("pulsar.protocols.flow", "from pulsar.errors import FlowControlError"),
        ("pulsar.protocols.consumer", "from .flow import FlowControl"),
        ("pulsar.clients.pool", "from ..protocols.connection import Connection"),
        ("pulsar.apps.socket.server", "from pulsar.application import Application"),
        ("pulsar.apps.socket.settings", "from pulsar.config import Setting"),
        ("pulsar.__main__", "from pulsar.cli import main"),
        ("pulsar.wire.framing", "from pulsar.errors import FrameTooLarge\nimport struct"),
        ("pulsar.protocols.flow", "import asyncio, socket"),
        ("pulsar.protocols.flow", "import pulsar.errors as errors"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_an_app_stands_on_the_apps_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for app in APPS:
        monkeypatch.setitem(MODULES, f"pulsar.apps.{app}", Path("__init__.py"))
    assert violations("pulsar.apps.wsgi.server", "from pulsar.apps.socket import x") == []
    assert violations("pulsar.apps.wsgi.server", "from . import writer") == []
    [onto_wsgi] = violations("pulsar.apps.socket.server", "from pulsar.apps.wsgi import x")
    assert onto_wsgi.endswith("the app socket may stand on no other.")
    [onto_http] = violations("pulsar.apps.ws.handler", "from ..http import x")
    assert onto_http.endswith("the app ws may stand on wsgi.")
