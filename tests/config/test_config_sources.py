"""Flags, environment and file: read together, refused one by one."""

import argparse
import os
import sys

import pytest

import pulsar.apps.socket.settings  # noqa: F401  declares the settings of "socket"
from pulsar.config import Config, FlagParser
from pulsar.errors import ImproperlyConfigured


def socket_config(**keywords) -> Config:
    return Config(apps=["socket"], prog="app", **keywords)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a TOML file called pulsar.toml into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "pulsar.toml").write_bytes(data)

    return write


@pytest.fixture
def refuse(capsys):
    """Load flags that must be refused; return the message."""

    def refuse(*argv: str, cfg: Config | None = None) -> str:
        with pytest.raises(SystemExit) as caught:
            (cfg or socket_config()).load(list(argv), {})
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("app: error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1, "one line"
        return err.removeprefix("app: error: ").rstrip()

    return refuse


# All sources together: each subset of them, the best one in force.

PLACES = ("flag", "environment", "file", "keyword", "convention")
ORIGINS = {
    "flag": (5, "flag --workers"),
    "environment": (4, "environment PULSAR_WORKERS"),
    "file": (3, "file pulsar.toml"),
    "keyword": (2, "keyword"),
    "convention": (6, "environment WEB_CONCURRENCY"),
    None: (1, "default"),
}


@pytest.mark.parametrize("mask", range(2 ** len(PLACES)))
def test_precedence_of_real_sources(mask, write):
    used = [place for bit, place in enumerate(PLACES) if mask >> bit & 1]
    argv, environ, keywords = [], {}, {}
    if "flag" in used:
        argv += ["--workers", "5"]
    if "environment" in used:
        environ["PULSAR_WORKERS"] = "4"
    if "file" in used:
        write("workers = 3")
        argv += ["--config", "pulsar.toml"]
    if "keyword" in used:
        keywords["workers"] = 2
    if "convention" in used:
        environ["WEB_CONCURRENCY"] = "6"
    cfg = Config(**keywords)
    cfg.load(argv, environ)
    winner = used[0] if used else None
    assert (cfg.workers, cfg.origin("workers")) == ORIGINS[winner]


def test_load_reads_this_process_unless_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "-w", "3"])
    monkeypatch.setitem(os.environ, "PULSAR_LOG_LEVEL", "error")
    cfg = Config()
    cfg.load()
    assert (cfg.workers, cfg.log_level) == (3, "error")


# Flags


def test_flags_of_every_shape():
    cfg = socket_config(debug=True)
    cfg.load(["-w4", "-b", ":1", "--bind=[::1]:2,:3", "--keep-alive", "2.5", "--no-debug"], {})
    assert cfg.workers == 4
    assert cfg.bind == (":1", "[::1]:2", ":3")
    assert (cfg.keep_alive, cfg.origin("keep_alive")) == (2.5, "flag --keep-alive")
    assert (cfg.debug, cfg.origin("debug")) == (False, "flag --no-debug")
    assert (cfg.bind, cfg.origin("bind")) == ((":1", "[::1]:2", ":3"), "flag --bind")


def test_flags_replace_a_list_from_elsewhere(write):
    write("bind = [':1', ':2']")
    cfg = socket_config()
    cfg.load(["-c", "pulsar.toml"], {})
    assert cfg.bind == (":1", ":2")
    cfg.load(["-b", ":3"], {})
    assert cfg.bind == (":3",)


def test_orders_are_flags_without_a_twin(refuse):
    cfg = socket_config()
    cfg.load(["--check", "--print-config"], {})
    assert cfg.check is cfg.print_config is True
    assert refuse("--no-check").startswith("unknown flag --no-check")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--keepalive", "3"], "unknown flag --keepalive; did you mean --keep-alive?"),
        (["--keepalive=3"], "unknown flag --keepalive; did you mean --keep-alive?"),
        (["--worker", "3"], "unknown flag --worker; did you mean --workers?"),
        (["--zzzzzz"], "unknown flag --zzzzzz"),
        (["-z"], "unknown flag -z"),
        (["stray"], "unexpected argument 'stray'"),
        (
            ["--keep-alive", "-1"],
            "argument --keep-alive: cannot be '-1': give a number of seconds, 0 or more",
        ),
        (
            ["-w", "many"],
            "argument -w/--workers: cannot be 'many': give a whole number, 0 or more, or auto",
        ),
        (
            ["--kind", "consumr"],
            (
                "argument --kind: cannot be 'consumr': choose auto, consumer, protocol, datagram, "
                "stream or wsgi; did you mean consumer?"
            ),
        ),
        (["--keep-alive"], "argument --keep-alive: expected one argument"),
        (
            ["-c", "missing.toml"],
            (
                "argument -c/--config: cannot be 'missing.toml': give the path of a file that "
                "exists and can be read"
            ),
        ),
    ],
)
def test_flags_are_refused(refuse, argv, message):
    assert refuse(*argv) == message


def test_a_bad_address_says_so_once(refuse):
    message = refuse("--bind", ":1,nohost:port")
    assert message.startswith("argument -b/--bind: 'nohost:port': ")
    assert message.count("bind") == 1


def test_flags_are_not_abbreviated(refuse):
    assert refuse("--keep", "3").startswith("unknown flag --keep")


def test_a_secret_has_no_flag(refuse):
    assert refuse("--key-password", "hush").startswith("unknown flag --key-password")


def test_positionals_can_be_added():
    cfg = socket_config()
    parser = cfg.parser("app TARGET [options]")
    parser.add_argument("target")
    namespace = parser.parse_args(["mod:thing", "--backlog", "7"])
    cfg.load_namespace(namespace, {"PULSAR_KEEP_ALIVE": "4"})
    assert (namespace.target, cfg.backlog, cfg.keep_alive) == ("mod:thing", 7, 4)
    assert parser.format_usage() == "usage: app TARGET [options]\n"


def test_flags_can_be_added_to_a_parser_with_subcommands(capsys):
    parser = FlagParser(prog="tool", allow_abbrev=False)
    cfg = socket_config()
    cfg.add_flags(parser.add_subparsers().add_parser("serve"))
    cfg.load_namespace(parser.parse_args(["serve", "-b", ":9"]), {})
    assert cfg.bind == (":9",)
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", "-w", "x"])
    assert capsys.readouterr().err.startswith("tool serve: error: argument -w/--workers: cannot")


def test_a_namespace_may_hold_anything_else():
    cfg = socket_config()
    cfg.load_namespace(argparse.Namespace(target="x", backlog=9), {})
    assert cfg.backlog == 9


def test_help_is_grouped_and_complete(capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", "100")
    cfg = socket_config(description="Says things back.")
    with pytest.raises(SystemExit) as caught:
        cfg.load(["--help"], {})
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: app [options]\n\nSays things back.\n")
    sections = dict.fromkeys(setting.section for setting in cfg.settings.values())
    places = [out.index(f"\n{section}:\n") for section in sections]
    assert places == sorted(places)
    shown = " ".join(out.split())
    for setting in cfg.settings.values():
        assert (f"; {setting.variable}]" in shown) == bool(setting.flags)
        assert all(flag in shown for flag in setting.flags)
    assert "[default: 75; PULSAR_KEEP_ALIVE]" in shown
    assert "[default: 127.0.0.1:8060; PULSAR_BIND]" in shown
    assert "[default: unset; PULSAR_CERT_FILE]" in shown
    assert "[default: process; PULSAR_CONCURRENCY]" in shown


# Environment


def test_environment():
    cfg = socket_config()
    cfg.load(
        [],
        {
            "PULSAR_BIND": ":1, unix:/tmp/x",
            "PULSAR_DEBUG": "yes",
            "PULSAR_KEY_PASSWORD": "a,b",
            "PULSAR_KEEP_ALIVE": "",
            "KEEP_ALIVE": "3",
            "pulsar_backlog": "3",
        },
    )
    assert cfg.bind == (":1", "unix:/tmp/x")
    assert (cfg.debug, cfg.origin("debug")) == (True, "environment PULSAR_DEBUG")
    assert cfg.key_password == "a,b"
    assert not cfg.is_set("keep_alive")
    assert not cfg.is_set("backlog")
    assert cfg.warnings == []


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"PULSAR_KEEP_ALIVE": "x"},
            r"keep_alive cannot be 'x': give .* \(environment PULSAR_KEEP_ALIVE\)",
        ),
        ({"WEB_CONCURRENCY": "x"}, r"workers cannot be 'x': .* \(environment WEB_CONCURRENCY\)"),
        ({"PULSAR_BIND": ","}, "bind cannot be ',': give at least one value"),
        ({"PULSAR_DEBUG": "2"}, "debug cannot be '2': give true or false"),
    ],
)
def test_bad_values_in_the_environment_are_refused(environ, message):
    with pytest.raises(ImproperlyConfigured, match=message):
        socket_config().load([], environ)


def test_unknown_variables_are_reported_only():
    cfg = socket_config()
    cfg.load([], {"PULSAR_KEEPALIVE": "1", "PULSAR_QQQQQQ": "secret", "OTHER_BIND": "1"})
    assert cfg.warnings == [
        (
            "the environment variable PULSAR_KEEPALIVE belongs to no setting; "
            "did you mean PULSAR_KEEP_ALIVE?"
        ),
        "the environment variable PULSAR_QQQQQQ belongs to no setting",
    ]


def test_a_variable_of_another_application_is_not_reported():
    cfg = Config()
    cfg.load([], {"PULSAR_BIND": ":1"})
    assert cfg.warnings == []


# The file


def test_no_file_is_read_unless_named(write):
    write("workers = 9")
    cfg = Config()
    cfg.load([], {})
    assert cfg.workers == 1


@pytest.mark.parametrize(
    "content",
    [
        "keep_alive = 5\nbind = [':1', ':2']\ndebug = true\nname = 'n'",
        "keep-alive = 5.0\nbind = ':1,:2'\ndebug = true\nname = 'n'",
        "[pulsar]\nkeep_alive = 5\nbind = [':1', ':2']\ndebug = true\nname = 'n'",
        "keep-alive = 5\nname = 'n'\n[pulsar]\nbind = [':1', ':2']\ndebug = true",
    ],
)
@pytest.mark.parametrize("how", ["flag", "environment", "keyword"])
def test_file(write, content, how):
    write(content)
    cfg = socket_config(**({"config": "pulsar.toml"} if how == "keyword" else {}))
    cfg.load(
        ["-c", "pulsar.toml"] if how == "flag" else [],
        {"PULSAR_CONFIG": "pulsar.toml"} if how == "environment" else {},
    )
    assert (cfg.keep_alive, cfg.bind, cfg.debug, cfg.name) == (5, (":1", ":2"), True, "n")
    assert cfg.origin("keep_alive") == "file pulsar.toml"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("keepalive = 5", r"keepalive is not a setting \(file pulsar.toml\); .* keep_alive\?"),
        ("keep-alve = 5", "keep_alve is not a setting .* did you mean keep_alive"),
        ("[pulser]\nworkers = 1", r"pulser is not a setting \(file pulsar.toml\)"),
        ("[pulsar]\nworkrs = 1", "workrs is not a setting .* did you mean workers"),
        ("pulsar = 3", r"pulsar must be a table in pulsar.toml: write \[pulsar\]"),
        ("keep_alive = 'x'", r"keep_alive cannot be 'x': .* \(file pulsar.toml\)"),
        ("keep_alive = true", "keep_alive cannot be True: "),
        ("workers = 2.0", "workers cannot be 2.0: give a whole number"),
        ("bind = [1]", "bind cannot be 1: give a text"),
        ("bind = []", "bind cannot be .*: give at least one value"),
        ("debug = 1979-05-27", "debug cannot be .*: give true or false"),
        ("keep_alive = 1\nkeep-alive = 2", "keep_alive is given twice in pulsar.toml"),
        ("keep_alive = 1\n[pulsar]\nkeep_alive = 2", "keep_alive is given twice in pulsar.toml"),
        ("check = true", "check belongs on the command line, not in pulsar.toml"),
        ("config = 'x'", "config belongs on the command line, not in pulsar.toml"),
        ("workers = 1\nbind = oops", "pulsar.toml is not valid TOML: .*line 2, column 8"),
        (b"name = '\xff'", "pulsar.toml is not valid TOML: .*utf-8"),
    ],
)
def test_files_are_refused(write, content, message):
    write(content)
    with pytest.raises(ImproperlyConfigured, match=message):
        socket_config().load(["-c", "pulsar.toml"], {})


def test_tls_version_may_be_a_number(write):
    write("tls_min_version = 1.3")
    cfg = socket_config()
    cfg.load(["-c", "pulsar.toml"], {})
    assert cfg.tls_min_version == "1.3"


def test_a_file_that_went_away_is_refused(write, tmp_path):
    write("workers = 2")
    cfg = socket_config(config="pulsar.toml")
    (tmp_path / "pulsar.toml").unlink()
    with pytest.raises(ImproperlyConfigured, match=r"cannot read pulsar\.toml: No such file"):
        cfg.load([], {})


@pytest.mark.parametrize("relative", [True, False])
def test_a_file_elsewhere_is_named_as_it_was_given(relative, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "etc.toml").write_text("workers = 2")
    monkeypatch.chdir(tmp_path / "here")
    given = "../etc.toml" if relative else str(tmp_path / "etc.toml")
    cfg = Config()
    cfg.load(["-c", given], {})
    assert (cfg.workers, cfg.origin("workers")) == (2, f"file {given}")
