"""Declaring settings: the validators, what a declaration must have, and that it is enough."""

import logging
import math
import re
from pathlib import Path

import pytest

from pulsar.config import (
    Config,
    Setting,
    boolean,
    existing_directory,
    existing_file,
    file_path,
    identity,
    log_level,
    non_negative_int,
    positive_int,
    positive_seconds,
    render_config,
    seconds,
    settings_of,
    size,
    text,
)
from pulsar.config.setting import literal
from pulsar.errors import ImproperlyConfigured

ACCEPTED = [
    (text, "a b", "a b"),
    (text, "", ""),
    (boolean, True, True),
    (boolean, "Yes", True),
    (boolean, " on ", True),
    (boolean, 1, True),
    (boolean, "0", False),
    (boolean, "false", False),
    (boolean, False, False),
    (non_negative_int, 0, 0),
    (non_negative_int, "12", 12),
    (positive_int, 1, 1),
    (positive_int, "1", 1),
    (seconds, 0, 0),
    (seconds, "2.5", 2.5),
    (seconds, 30, 30),
    (positive_seconds, "0.1", 0.1),
    (size, 0, 0),
    (size, "4096", 4096),
    (size, "512M", 512 * 1024**2),
    (size, " 2 k ", 2048),
    (size, "1.5G", 1536 * 1024**2),
    (size, "3MB", 3 * 1024**2),
    (size, "3MiB", 3 * 1024**2),
    (identity, "www-data", "www-data"),
    (identity, "33", "33"),
    (identity, 0, "0"),
    (log_level, "info", "info"),
    (log_level, "ERROR", "error"),
    (log_level, logging.DEBUG, "debug"),
]

REFUSED = [
    (text, 3),
    (text, b"bytes"),
    (boolean, "maybe"),
    (boolean, 2),
    (
        boolean,
        "",
    ),
    (boolean, []),
    (non_negative_int, -1),
    (non_negative_int, 1.0),
    (non_negative_int, True),
    (non_negative_int, "1.5"),
    (non_negative_int, "four"),
    (positive_int, 0),
    (positive_int, "-3"),
    (seconds, -0.1),
    (seconds, "soon"),
    (seconds, math.nan),
    (seconds, "inf"),
    pytest.param(seconds, 10**400, id="seconds-huge"),
    (seconds, False),
    (seconds, [1]),
    (positive_seconds, 0),
    (size, -1),
    (size, "-1M"),
    (size, "M"),
    (size, "1.5"),
    (size, "1T"),
    (size, "1 M B"),
    (size, "\u0661M"),
    (size, 1.5),
    (size, True),
    (size, ""),
    pytest.param(size, "9" * 400 + "G", id="size-huge"),
    (identity, ""),
    (identity, " "),
    (identity, -1),
    (identity, False),
    (identity, 1.0),
    (log_level, "loud"),
    (log_level, 0),
    (log_level, 15),
    (log_level, True),
    (existing_file, "/nowhere/at/all"),
    (existing_file, "/"),
    (existing_file, ""),
    (existing_file, "a\0b"),
    (existing_file, 1),
    (file_path, ""),
    (file_path, "."),
    (file_path, "/"),
    (file_path, "a\0b"),
    (file_path, 1),
    (existing_directory, "/nowhere/at/all"),
    (existing_directory, 1),
]


@pytest.mark.parametrize(("validator", "given", "expected"), ACCEPTED)
def test_validator_accepts(validator, given, expected):
    value = validator(given)
    assert value == expected
    assert type(value) in (type(expected), float)
    assert validator(value) == value, "a validator accepts its own result"


@pytest.mark.parametrize(("validator", "given"), REFUSED)
def test_validator_refuses_with_what_is_accepted(validator, given):
    with pytest.raises(ValueError, match=r"^(give|choose) "):
        validator(given)


def test_paths_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "a.pem").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert existing_file("a.pem") == str(tmp_path / "a.pem")
    assert existing_file(Path("a.pem")) == str(tmp_path / "a.pem")
    assert existing_directory(".") == str(tmp_path)
    assert file_path("a.pem") == str(tmp_path / "a.pem")
    assert file_path(Path("new/b.pem")) == str(tmp_path / "new" / "b.pem")
    with pytest.raises(ValueError, match="a file that exists"):
        existing_file(".")
    with pytest.raises(ValueError, match="give the path of a file"):
        file_path(str(tmp_path))
    with pytest.raises(ValueError, match="a directory that exists"):
        existing_directory("a.pem")


def test_a_symbolic_link_stays_one(tmp_path):
    """Renewed certificates are put in place by changing the link."""
    (tmp_path / "one").write_text("x")
    (tmp_path / "live").symlink_to("one")
    assert existing_file(str(tmp_path / "live")) == str(tmp_path / "live")


class Volume(Setting):
    name = "volume_level"
    app = "test-declaration"
    section = "Sound"
    flags = ("--volume-level",)
    metavar = "NUMBER"
    validator = positive_int
    default = 5
    change = "live"
    desc = """
        How loud 100% of it
        may be.
        """


class Voices(Setting):
    name = "voices"
    app = "test-declaration"
    section = "Sound"
    flags = ("--voice",)
    choices = ("alto", "bass", "tenor")
    multiple = True
    default = ("alto",)
    desc = "Who sings."


class Mute(Setting):
    name = "mute"
    app = "test-declaration"
    section = "Sound"
    flags = ("--mute",)
    is_flag = True
    default = False
    desc = "Sing silently."


APPS = ("test-declaration",)


def test_a_declaration_is_all_there_is_to_do(tmp_path, capsys):
    """No other file names these settings, yet every source and every listing has them."""
    file = tmp_path / "s.toml"
    file.write_text("volume-level = 7")
    cfg = Config(apps=APPS, volume_level=6, prog="choir")
    assert (cfg.volume_level, cfg.origin("volume_level")) == (6, "keyword")
    cfg.load(["-c", str(file)], {})
    assert (cfg.volume_level, cfg.origin("volume_level")) == (7, f"file {file}")
    cfg.load([], {"PULSAR_VOLUME_LEVEL": "8", "PULSAR_VOICES": "bass, tenor", "PULSAR_MUTE": "no"})
    assert (cfg.volume_level, cfg.voices, cfg.mute) == (8, ("bass", "tenor"), False)
    cfg.load(["--volume-level", "9", "--voice", "tenor", "--voice=bass,alto", "--mute"], {})
    assert (cfg.volume_level, cfg.voices, cfg.mute) == (9, ("tenor", "bass", "alto"), True)
    assert re.search(r"^volume_level += 9 +# flag --volume-level$", render_config(cfg), re.M)
    with pytest.raises(SystemExit):
        cfg.load(["--help"], {})
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "Sound: --volume-level NUMBER How loud 100% of it may be. "
        "[default: 5; PULSAR_VOLUME_LEVEL]" in shown
    )
    assert "--voice alto|bass|tenor Who sings. [default: alto; PULSAR_VOICES]" in shown
    assert "--mute, --no-mute Sing silently. [default: false; PULSAR_MUTE]" in shown


def test_an_application_has_the_core_and_its_own():
    assert "volume_level" not in Config()
    own = settings_of(APPS)
    assert set(settings_of()) < set(own)
    assert own["volume_level"] is Volume
    assert list(own)[-3:] == ["volume_level", "voices", "mute"]


def test_the_same_section_is_shown_once():
    class More(Setting):
        name = "more"
        app = "test-sections"
        section = "General"
        desc = "More."

    class Other(Setting):
        name = "other_thing"
        app = "test-sections"
        section = "Other"
        desc = "Other."

    sections = [setting.section for setting in settings_of(["test-sections"]).values()]
    assert sections[-1] == "Other"
    assert sections == sorted(sections, key=sections.index), "one section after the other"


def test_virtual_is_not_a_setting_and_not_inherited():
    class Base(Setting):
        virtual = True
        app = "test-virtual"
        validator = positive_int

    class Real(Base):
        name = "real"
        desc = "Real."

    assert set(settings_of(["test-virtual"])) - set(settings_of()) == {"real"}
    assert Config(apps=["test-virtual"], real="3").real == 3


def test_an_application_may_change_a_setting_for_itself():
    class Workers(settings_of()["workers"]):
        app = "test-replaces"
        default = 4

    assert Config(apps=["test-replaces"]).workers == 4
    assert Config().workers == 1


def test_the_later_declaration_counts():
    """A script that is run and then imported declares its settings twice."""
    for number in (1, 2):
        type("Twice", (Setting,), {"name": "twice", "app": "test-twice", "default": number})
    assert Config(apps=["test-twice"]).twice == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "name must be"),
        ({"name": "keep-alive"}, "name must be"),
        ({"name": "KeepAlive"}, "name must be"),
        ({"name": "_hidden"}, "name must be"),
        ({"name": "x", "flags": ("x",)}, "start with a dash"),
        ({"name": "x", "change": "tomorrow"}, "change must be one of"),
    ],
)
def test_a_wrong_declaration_fails_where_it_is_written(body, message):
    with pytest.raises(TypeError, match=message):
        type("Wrong", (Setting,), {"app": "test-wrong", **body})
    assert settings_of(["test-wrong"]) == settings_of()


def test_two_settings_cannot_share_a_flag():
    class Wide(Setting):
        name = "wide"
        app = "test-clash"
        flags = ("-w", "--wide")

    with pytest.raises(ImproperlyConfigured, match=r"flag -w .* workers and wide"):
        Config(apps=["test-clash"])


@pytest.mark.parametrize("name", ["copy", "set", "load", "prog", "settings", "warnings"])
def test_a_setting_cannot_hide_config(name):
    setting = type("Hides", (Setting,), {"name": name, "app": "test-hides"})
    with pytest.raises(ImproperlyConfigured, match=f"cannot be called {name}"):
        Config(settings=[setting])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "voices cannot be None: leave it out to have the default"),
        (3, "voices cannot be 3: give a list, or a text with commas between the values"),
        ([], r"voices cannot be \[\]: give at least one value"),
        (" , ", "give at least one value"),
        (["alto", "tenr"], "'tenr': choose alto, bass or tenor; did you mean tenor"),
        (["alto", 4], "voices cannot be 4: give a text"),
    ],
)
def test_a_refusal_is_a_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        Voices.clean(given)


def test_any_function_can_validate():
    setting = type("Any", (Setting,), {"name": "any", "app": "test-any", "validator": int})
    assert setting.clean("3") == 3
    assert setting.clean(None) is None
    for wrong in ("x", []):
        with pytest.raises(ValueError, match=r"^any cannot be .*: .*int\(\)"):
            setting.clean(wrong)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "unset"),
        (True, "true"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        ('a"b\n\x7f', r'"a\"b\n\u007f"'),
        ((), "[]"),
        (("a", "b"), '["a", "b"]'),
        (Path("/x"), '"/x"'),
    ],
)
def test_literal(value, written):
    assert literal(value) == written
