"""The settings that come with pulsar, and the page that documents them."""

import runpy
from pathlib import Path

import pytest

import pulsar.apps.socket.settings  # noqa: F401  declares the settings of "socket"
from pulsar.config import Config, settings_of

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
    assert {flag for flag in flags if not flag.startswith("--")} == {"-b", "-c", "-w"}


def test_names_of_the_old_releases():
    old = {"bind", "backlog", "keep_alive", "workers", "concurrency", "max_requests"}
    old |= {"cert_file", "key_file", "log_level", "config", "debug", "name"}
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
        ("log_level", "info"),
        ("tls_min_version", "1.2"),
        ("cert_reqs", "none"),
        ("cert_file", None),
    ],
)
def test_defaults_that_users_rely_on(name, value):
    cfg = Config(apps=["socket"])
    assert getattr(cfg, name) == value
    assert cfg.origin(name) == "default"


def test_certificates_and_logs_change_live():
    live = {name for name, setting in SETTINGS.items() if setting.change == "live"}
    assert {"cert_file", "key_file", "key_password", "log_level"} <= live
    assert SETTINGS["bind"].change == "restart"


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
