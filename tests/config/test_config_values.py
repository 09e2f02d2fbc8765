"""Config: which value is in force, what is refused, and what a Config can do."""

import copy
import itertools
import pickle
import subprocess
import sys
import tomllib

import pytest

import pulsar.apps.socket.settings  # noqa: F401  declares the settings of "socket"
from pulsar.config import (
    DEFAULT,
    KEYWORD,
    RUN_TIME,
    Config,
    Origin,
    Rank,
    Setting,
    render_config,
    settings_of,
)
from pulsar.errors import ImproperlyConfigured

SOURCES = {
    Rank.CONVENTION: Origin(Rank.CONVENTION, "environment WEB_CONCURRENCY"),
    Rank.KEYWORD: KEYWORD,
    Rank.FILE: Origin(Rank.FILE, "file pulsar.toml"),
    Rank.ENVIRONMENT: Origin(Rank.ENVIRONMENT, "environment PULSAR_WORKERS"),
    Rank.FLAG: Origin(Rank.FLAG, "flag --workers"),
    Rank.RUN_TIME: RUN_TIME,
}


def socket_config(**keywords) -> Config:
    return Config(apps=["socket"], **keywords)


@pytest.mark.parametrize("order", [*itertools.permutations(SOURCES, 2)])
def test_the_higher_rank_wins_in_either_order(order):
    cfg = Config()
    for rank in order:
        cfg.set("workers", 10 + rank, origin=SOURCES[rank])
    assert cfg.workers == 10 + max(order)
    assert cfg.origin("workers") == SOURCES[max(order)].label


@pytest.mark.parametrize("rank", SOURCES)
def test_any_source_beats_the_default_and_itself(rank):
    cfg = Config()
    assert (cfg.workers, cfg.origin("workers"), cfg.is_set("workers")) == (1, "default", False)
    for value in (7, 8):
        cfg.set("workers", value, origin=SOURCES[rank])
        assert (cfg.workers, cfg.origin("workers")) == (value, SOURCES[rank].label)
    assert cfg.is_set("workers")


def test_being_set_to_the_default_counts_as_set():
    cfg = socket_config(keep_alive=75)
    assert (cfg.keep_alive, cfg.origin("keep_alive"), cfg.is_set("keep_alive")) == (
        75,
        "keyword",
        True,
    )


def test_what_is_set_at_run_time_is_in_force():
    cfg = Config(workers=2)
    cfg.load(["--workers", "3"], {})
    cfg.set("workers", 0)
    assert (cfg.workers, cfg.origin("workers")) == (0, "run time")


def test_the_ranks_are_the_promised_precedence():
    assert [rank.name for rank in reversed(Rank)][1:] == [
        "FLAG",
        "ENVIRONMENT",
        "FILE",
        "KEYWORD",
        "CONVENTION",
        "DEFAULT",
    ]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"keepalive": 3}, r"keepalive is not a setting \(keyword\); did you mean keep_alive\?$"),
        ({"qqqq": 3}, r"qqqq is not a setting \(keyword\)$"),
        (
            {"keep_alive": "long"},
            r"keep_alive cannot be 'long': give a number of seconds, 0 or more \(keyword\)",
        ),
        ({"keep_alive": None}, "keep_alive cannot be None: leave it out"),
        ({"concurrency": "thred"}, "choose process or thread; did you mean thread"),
        ({"log_level": "warnin"}, "or critical; did you mean warning"),
        ({"bind": "::1"}, r"bind '::1': .*\(keyword\)"),
        ({"bind": [":80", "x:y"]}, "bind 'x:y': "),
        ({"cert_file": "/no/such.pem"}, "cert_file cannot be '/no/such.pem': give the path"),
        ({"config": "/no/such.toml"}, "config cannot be '/no/such.toml': give the path"),
    ],
)
def test_keywords_are_refused(keywords, message):
    with pytest.raises(ImproperlyConfigured, match=message):
        socket_config(**keywords)


def test_a_secret_is_not_shown_when_refused():
    with pytest.raises(ImproperlyConfigured, match=r"key_password cannot be \*\*\*: ") as caught:
        socket_config(key_password=123454321)
    assert "123454321" not in str(caught.value)


def test_a_refused_value_changes_nothing():
    cfg = Config(workers=2)
    with pytest.raises(ImproperlyConfigured, match=r"\(run time\)"):
        cfg.set("workers", -1)
    assert (cfg.workers, cfg.origin("workers")) == (2, "keyword")


def test_an_unknown_attribute_names_the_nearest():
    cfg = Config()
    with pytest.raises(AttributeError, match="no setting is called 'log_levl'; did you mean log"):
        _ = cfg.log_levl
    assert not hasattr(cfg, "anything")
    with pytest.raises(AttributeError):
        cfg.workers = 3
    assert cfg.workers == 1


def test_get_reads_a_setting_that_may_not_exist():
    assert Config(workers=3).get("workers") == 3
    assert Config().get("keep_alive") is None
    assert Config().get("keep_alive", 5) == 5


def test_iteration():
    cfg = socket_config(backlog=5)
    names = list(cfg)
    assert len(cfg) == len(names) == len(set(names))
    assert dict(cfg.items())["backlog"] == 5
    assert [name for name, _ in cfg.items()] == names == list(cfg.settings)
    assert "backlog" in cfg
    assert "nothing" not in cfg
    with pytest.raises(TypeError):
        cfg.settings["x"] = Setting


def test_explicit_settings_are_exactly_those():
    known = settings_of()
    cfg = Config(settings=[known["workers"], known["log_level"]], workers=3)
    assert dict(cfg.items()) == {"workers": 3, "log_level": "info"}
    cfg.load(["--workers", "4"], {})
    assert cfg.workers == 4


def test_repr_is_a_status_line_without_values():
    cfg = socket_config(key_password="hush", workers=2)
    assert repr(cfg) == f"<Config: {len(cfg)} settings, 2 of them given>"


@pytest.mark.parametrize("duplicate", [Config.copy, copy.copy])
def test_a_copy_is_independent(duplicate):
    cfg = Config(workers=2, prog="p", description="d")
    cfg.load([], {"PULSAR_NO_SUCH": "1"})
    twin = duplicate(cfg)
    assert dict(twin.items()) == dict(cfg.items())
    assert (twin.prog, twin.description, twin.warnings) == ("p", "d", cfg.warnings)
    twin.set("workers", 3)
    twin.warnings.clear()
    assert (cfg.workers, cfg.origin("workers")) == (2, "keyword")
    assert cfg.warnings


def test_a_copy_does_not_look_at_files_again(tmp_path):
    cert = tmp_path / "cert.pem"
    cert.write_text("x")
    cfg = socket_config(cert_file=cert)
    cert.unlink()
    assert cfg.copy().cert_file == pickle.loads(pickle.dumps(cfg)).cert_file == str(cert)


def test_fresh_keeps_what_code_gave_only(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("log_level = 'debug'")
    cfg = Config(graceful_timeout=5, log_level="error")
    cfg.load(["-c", str(file), "--graceful-timeout", "6"], {"WEB_CONCURRENCY": "3"})
    cfg.set("name", "me")
    assert (cfg.workers, cfg.graceful_timeout, cfg.log_level) == (3, 6, "debug")
    fresh = cfg.fresh()
    assert (fresh.workers, fresh.graceful_timeout, fresh.log_level) == (1, 5, "error")
    assert fresh.name == "me"
    assert fresh.config is None
    fresh.load([], {})
    assert cfg.graceful_timeout == 6


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_values_and_origins(protocol):
    cfg = socket_config(keep_alive=5)
    cfg.load(["--bind", ":1", "--bind", ":2"], {"PULSAR_LOG_LEVEL": "debug"})
    twin = pickle.loads(pickle.dumps(cfg, protocol))
    assert dict(twin.items()) == dict(cfg.items())
    assert [twin.origin(name) for name in twin] == [cfg.origin(name) for name in cfg]
    twin.set("keep_alive", 6)
    assert cfg.keep_alive == 5


def test_a_pickle_opens_in_another_interpreter():
    """It imports the declarations that it needs."""
    code = "import pickle, sys; cfg = pickle.load(sys.stdin.buffer); print(cfg.bind, cfg.backlog)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(socket_config(backlog=5)),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout.decode().strip() == "('127.0.0.1:8060',) 5"


def test_render_config_shows_every_value_and_its_origin():
    cfg = socket_config(key_password="hush", keep_alive=5.5)
    cfg.load(["--bind", ":1,:2"], {"WEB_CONCURRENCY": "3"})
    lines = render_config(cfg).splitlines()
    rows = dict(line.split("=", 1) for line in lines if "=" in line)
    rows = {key.strip(): " ".join(value.split()) for key, value in rows.items()}
    assert {name.removeprefix("#") for name in rows} == set(cfg)
    assert rows["keep_alive"] == "5.5 # keyword"
    assert rows["bind"] == '[":1", ":2"] # flag --bind'
    assert rows["workers"] == "3 # environment WEB_CONCURRENCY"
    assert rows["backlog"] == "2048 # default"
    assert rows["#cert_file"] == "unset # default"
    assert rows["#key_password"] == '"***" # keyword'
    assert rows["#check"] == "false # default"
    assert "hush" not in render_config(cfg)
    assert len({line.index("  # ") for line in lines if " = " in line}) == 1, "aligned"
    sections = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    assert sections == list(dict.fromkeys(s.section for s in cfg.settings.values()))


def test_rendered_config_is_a_file_that_gives_the_same_values(tmp_path):
    cfg = socket_config(bind=['unix:/a b"\\c', ":0"], keep_alive=0, debug=True, name="ü\t\x7f")
    file = tmp_path / "again.toml"
    file.write_text(render_config(cfg), encoding="utf-8")
    assert tomllib.loads(render_config(cfg))["name"] == cfg.name
    again = socket_config()
    again.load(["-c", str(file)], {})
    given = {name: value for name, value in again.items() if name != "config"}
    assert given == {name: value for name, value in cfg.items() if name != "config"}


def test_default_is_not_an_origin_that_anyone_can_fake():
    cfg = Config()
    cfg.set("workers", 9, origin=DEFAULT)
    assert cfg.workers == 9
    assert not cfg.is_set("workers")
