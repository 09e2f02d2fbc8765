"""The settings that come with pulsar, and the page that documents them."""

import runpy
from pathlib import Path

import pytest

import pulsar.apps.socket.settings  # noqa: F401  declares the settings of "socket"
from pulsar.config import Config, core, settings_of
from pulsar.errors import ImproperlyConfigured

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = settings_of(["socket"])


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_each_declaration_is_whole(setting):
    assert setting.clean(setting.default) == setting.default
    assert setting.desc.endswith(".")
    assert setting.section
    if not setting.secret:
        assert setting.flags[-1] == f"--{setting.name.replace('_', '-')}"


def test_short_flags_are_few():
    flags = {flag for setting in SETTINGS.values() for flag in setting.flags}
    assert {flag for flag in flags if not flag.startswith("--")} == {
        *("-b", "-c", "-g", "-p", "-u", "-w")
    }


def test_names_of_the_old_releases():
    old = {"bind", "backlog", "keep_alive", "workers", "concurrency", "max_requests"}
    old |= {"cert_file", "key_file", "log_level", "config", "debug", "name", "timeout"}
    old |= {"pidfile", "user", "group", "process_name", "reload"}
    assert old <= set(SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bind", ("127.0.0.1:8060",)),
        ("workers", 1),
        ("concurrency", "process"),
        ("event_loop", "auto"),
        ("backlog", 2048),
        ("keep_alive", 75),
        ("stall_timeout", 60),
        ("handshake_timeout", 10),
        ("graceful_timeout", 30),
        ("max_connections", 1000),
        ("max_requests", 0),
        ("max_requests_jitter", None),
        ("max_lifetime", 0),
        ("max_memory", 0),
        ("timeout", 30),
        ("boot_timeout", 60),
        ("preload", True),
        ("reload", False),
        ("reuse_port", None),
        ("pidfile", None),
        ("user", None),
        ("group", None),
        ("process_name", None),
        ("control", "auto"),
        ("log_level", "info"),
        ("log_format", "plain"),
        ("log_file", "-"),
        ("tls_min_version", "1.2"),
        ("cert_reqs", "none"),
        ("cert_file", None),
    ],
)
def test_defaults_that_users_rely_on(name, value):
    cfg = Config(apps=["socket"])
    assert getattr(cfg, name) == value
    assert cfg.origin(name) == "default"


LIVE = {"workers", "graceful_timeout", "cert_file", "key_file", "key_password"}
LIVE |= {"log_level", "log_format", "log_file"}
RESTART = {"config", "name", "chdir", "check", "print_config", "reload", "concurrency"}
RESTART |= {"pidfile", "process_name", "control", "reuse_port"}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_what_a_change_takes(setting):
    """Most settings hold for the workers that a reload starts."""
    fixed = "restart" if setting.name in RESTART else "new workers"
    assert setting.change == ("live" if setting.name in LIVE else fixed)


def test_as_many_workers_as_processors(monkeypatch):
    monkeypatch.setattr(core, "available_cpus", lambda: 7)
    cfg = Config(workers="auto")
    assert (cfg.workers, cfg.origin("workers")) == (7, "keyword")
    cfg.load([], {"WEB_CONCURRENCY": " AUTO "})
    assert cfg.workers == 7
    cfg.load(["--workers", "auto"], {"PULSAR_WORKERS": "3"})
    assert (cfg.workers, cfg.origin("workers")) == (7, "flag --workers")
    with pytest.raises(ImproperlyConfigured, match="give a whole number, 0 or more, or auto"):
        Config(workers="automatic")


def test_files_that_need_not_exist_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(pidfile="run/p.pid", log_file="p.log", control="p.sock")
    assert (cfg.pidfile, cfg.log_file, cfg.control) == (
        str(tmp_path / "run/p.pid"),
        str(tmp_path / "p.log"),
        str(tmp_path / "p.sock"),
    )
    cfg = Config(log_file="-", control="off")
    assert (cfg.log_file, cfg.control) == ("-", "off")
    for name in ("pidfile", "log_file", "control"):
        with pytest.raises(ImproperlyConfigured, match=f"{name} cannot be '': give the path of a"):
            Config(**{name: ""})


def test_a_file_may_say_it_with_numbers(tmp_path):
    file = tmp_path / "pulsar.toml"
    file.write_text('user = 33\ngroup = "www"\nmax_memory = "1K"\npreload = false\n')
    cfg = Config()
    cfg.load(["-c", str(file)], {})
    assert (cfg.user, cfg.group, cfg.max_memory, cfg.preload) == ("33", "www", 1024, False)


def test_flags_of_two_states():
    cfg = Config(apps=["socket"])
    cfg.load(["--no-preload", "--reuse-port", "-p", "p.pid", "-u", "u", "-g", "g"], {})
    assert (cfg.preload, cfg.reuse_port) == (False, True)
    cfg.load(["--preload", "--no-reuse-port"], {})
    assert (cfg.preload, cfg.reuse_port) == (True, False)
    assert (Path(cfg.pidfile).name, cfg.user, cfg.group) == ("p.pid", "u", "g")


def test_handshakes_always_have_a_deadline():
    with pytest.raises(ValueError, match="more than 0"):
        SETTINGS["handshake_timeout"].clean("0")


def test_the_settings_page_is_current():
    page = runpy.run_path(str(DOCS / "settings_page.py"))["render"]()
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == page, (
        "run: python docs/settings_page.py"
    )
    for name, setting in SETTINGS.items():
        assert f"\n### {name}\n" in page
        assert f"`{setting.variable}`" in page
