"""Where log records go, what they look like, and what happens when a file is moved."""

import json
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pulsar.errors import ImproperlyConfigured
from pulsar.log import LOG_FORMATS, LOG_LEVELS, reopen_logs, setup_logging
from tests.support.privileges import unprivileged

# Under xdist a test process has a thread; the children of these tests touch nothing of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

PULSAR = logging.getLogger("pulsar")
LOGGER = logging.getLogger("pulsar.test")


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Loggers as in a process that has set up nothing, below a root logger of their own."""
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(PULSAR, "parent", root)
    monkeypatch.setattr(PULSAR, "handlers", [])
    monkeypatch.setattr(PULSAR, "propagate", True)
    level = PULSAR.level
    yield root
    for handler in PULSAR.handlers:
        handler.close()
    PULSAR.setLevel(level)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pulsar.log"


def records(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, each of which is a JSON object."""
    return [json.loads(line) for line in file.read_text().splitlines()]


# -- levels and formats


def test_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    LOGGER.info("hello %s", "world")
    LOGGER.debug("too little to be said")
    line = capsys.readouterr().err
    assert re.fullmatch(
        rf"\[\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{{4}}] \[{os.getpid()}] \[INFO] hello world\n",
        line,
    )


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_the_level(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(level)
    for each in LOG_LEVELS.values():
        LOGGER.log(each, "said")
    expected = [name.upper() for name, number in LOG_LEVELS.items() if number >= LOG_LEVELS[level]]
    assert re.findall(r"\[([A-Z]+)] said", capsys.readouterr().err) == expected


def test_a_json_line(file: Path) -> None:
    setup_logging("debug", "json", file)
    LOGGER.warning("hello %s", "world")
    [record] = records(file)
    assert list(record) == ["time", "level", "logger", "pid", "message"]
    assert (
        record.items()
        >= {
            "level": "warning",
            "logger": "pulsar.test",
            "pid": os.getpid(),
            "message": "hello world",
        }.items()
    )
    time = datetime.fromisoformat(record["time"])
    assert time.tzinfo is not None
    assert abs(datetime.now(time.tzinfo) - time) < timedelta(minutes=1)


def test_a_traceback_is_one_json_line(file: Path) -> None:
    setup_logging("debug", "json", file)
    try:
        raise ValueError("no\nway")
    except ValueError:
        LOGGER.exception("failed")
    LOGGER.info("here", stack_info=True)
    failed, here = records(file)
    assert failed["message"] == "failed"
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert failed["exception"].endswith("ValueError: no\nway")
    assert "exception" not in here
    assert "test_a_traceback_is_one_json_line" in here["stack"]


CONTROLS = "".join(map(chr, [*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0xFEFF]))


def test_nobody_forges_a_json_line(file: Path) -> None:
    setup_logging("debug", "json", file)
    message = f'a{CONTROLS}b"\\\ud800\N{SNOWMAN}'
    LOGGER.info(message, extra={"peer": message, "key\n": 1})
    [record] = records(file)
    assert (record["message"], record["peer"], record["key\n"]) == (message, message, 1)
    line = file.read_bytes()
    assert line.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])


def test_extra_fields_in_json(file: Path) -> None:
    setup_logging("debug", "json", file)
    circle: list[Any] = []
    circle.append(circle)
    kept = {"peer": "1.2.3.4", "port": 80, "share": 0.5, "tags": ["a", None], "more": {"a": True}}
    dropped = {"thing": object(), "nan": float("nan"), "circle": circle, "keys": {(1, 2): 3}}
    clash = {"level": "none", "pid": 0, "time": "never", "logger": "nobody", "exception": "what"}
    LOGGER.info("it", extra=kept | dropped | clash)
    [record] = records(file)
    assert record.items() >= kept.items()
    assert not dropped.keys() & record.keys()
    assert (record["level"], record["pid"], record["exception"]) == ("info", os.getpid(), "what")
    assert record["logger"] == "pulsar.test"


def test_the_name_of_the_process(file: Path) -> None:
    setup_logging(file=file, name="worker 3 of 100%d")
    LOGGER.info("plain")
    setup_logging(file=file, format="json", name="worker 3")
    LOGGER.info("json")
    plain, line = file.read_text().splitlines()
    assert f" [{os.getpid()} worker 3 of 100%d] [INFO] plain" in plain
    assert list(json.loads(line))[3:6] == ["pid", "name", "message"]
    assert json.loads(line)["name"] == "worker 3"


# -- files


def test_a_file_is_appended_to(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("before\n")
    setup_logging(file=str(file))
    LOGGER.info("\N{SNOWMAN} \ud800")
    assert file.read_text().startswith("before\n[")
    assert file.read_text().endswith("\N{SNOWMAN} \\ud800\n")
    assert capsys.readouterr().err == ""


def test_a_relative_file_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    setup_logging(file="pulsar.log")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    reopen_logs()
    LOGGER.info("here")
    assert (tmp_path / "pulsar.log").read_text().endswith("here\n")
    assert list((tmp_path / "below").iterdir()) == []


@pytest.mark.parametrize("file", [None, "-"])
def test_standard_error(file: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(file=file)
    reopen_logs()
    LOGGER.info("here")
    assert capsys.readouterr().err.endswith("here\n")


def test_a_file_that_cannot_be_opened_changes_nothing(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"cannot write the log file {tmp_path}: Is a"):
        setup_logging(file=tmp_path)
    assert PULSAR.handlers == []
    setup_logging("info", "json", file)
    missing = tmp_path / "missing" / "pulsar.log"
    with pytest.raises(ImproperlyConfigured, match=r"missing/pulsar.log: No such file or dir"):
        setup_logging("error", "plain", missing)
    LOGGER.info("still json")
    assert json.loads(file.read_text())["message"] == "still json"
    reopen_logs()
    LOGGER.info("the same file")
    assert len(file.read_text().splitlines()) == 2


def test_a_moved_file_is_made_anew(file: Path) -> None:
    setup_logging(file=file)
    LOGGER.info("one")
    moved = file.rename(file.with_suffix(".1"))
    LOGGER.info("two")
    reopen_logs()
    LOGGER.info("three")
    assert [line[-3:] for line in moved.read_text().splitlines()] == ["one", "two"]
    assert file.read_text().endswith("three\n")
    assert len(file.read_text().splitlines()) == 1


def test_a_file_that_cannot_be_made_anew_is_written_on(file: Path) -> None:
    setup_logging(file=file)
    moved = file.rename(file.with_suffix(".1"))
    file.mkdir()
    reopen_logs()
    LOGGER.info("on we go")
    complaint, line = moved.read_text().splitlines()
    assert complaint.endswith(
        f"[ERROR] cannot write the log file {file}: Is a directory; the old file is written on"
    )
    assert line.endswith("on we go")
    setup_logging("info", "json", file)
    LOGGER.info("in JSON")
    assert json.loads(moved.read_text().splitlines()[-1])["message"] == "in JSON"
    file.rmdir()
    reopen_logs()
    LOGGER.info("at last")
    assert json.loads(file.read_text())["message"] == "at last"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_new_file_is_given_to_those_who_reopen_it(tmp_path: Path, file: Path) -> None:
    setup_logging(file=file, owner=(4711, 4712))
    assert (file.stat().st_uid, file.stat().st_gid) == (4711, 4712)
    file.rename(file.with_suffix(".1"))
    reopen_logs()
    assert (file.stat().st_uid, file.stat().st_gid) == (4711, 4712)
    other = tmp_path / "other.log"
    other.write_text("")
    setup_logging(file=other, owner=(4711, 4712))
    assert other.stat().st_uid == 0, "what exists stays as it is"
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o777)
        own = Path(open_to_all, "own.log")
        with unprivileged():
            setup_logging(file=own, owner=(4711, 4712))
        assert own.stat().st_uid not in (0, 4711)


# -- again, and beside the application's own


def test_again_replaces_format_and_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.log"
    for each in (file, other, None, file):
        for kind in LOG_FORMATS:
            setup_logging("info", kind, each)
            LOGGER.info("once")
    assert len(PULSAR.handlers) == 1
    assert len(file.read_text().splitlines()) == 4
    assert len(other.read_text().splitlines()) == len(capsys.readouterr().err.splitlines()) == 2


class Kept(logging.Handler):
    """An application's handler, which keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.mark.parametrize(("at_root", "propagate"), [(False, False), (False, True), (True, True)])
def test_handlers_of_the_application_are_in_charge(
    root: logging.Logger,
    at_root: bool,
    propagate: bool,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = Kept()
    (root if at_root else PULSAR).addHandler(kept)
    PULSAR.propagate = propagate
    setup_logging("warning", "json")
    LOGGER.info("no")
    LOGGER.warning("one")
    setup_logging("info", "json", file)
    LOGGER.info("two")
    setup_logging("info", "json", file)
    LOGGER.info("three")
    assert kept.messages == ["one", "two", "three"]
    assert kept.formatter is None
    assert [json.loads(line)["message"] for line in file.read_text().splitlines()] == [
        "two",
        "three",
    ]
    assert PULSAR.propagate == propagate
    assert capsys.readouterr().err == ""


def test_a_handler_that_came_later_stays_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    kept = Kept()
    PULSAR.addHandler(kept)
    setup_logging()
    LOGGER.info("both")
    assert kept.messages == ["both"]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_records_do_not_reach_the_root_logger_as_well() -> None:
    setup_logging()
    assert not PULSAR.propagate


# -- processes


def test_processes_share_a_file_without_tearing_records(file: Path) -> None:
    setup_logging("info", "json", file)
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if number % 2:
                    setup_logging("info", "json", file, name=f"worker {number}")
                for index in range(50):
                    LOGGER.info("%s", "x" * 20_000, extra={"number": number, "index": index})
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    whole = records(file)
    for number, pid in enumerate(children):
        own = [record for record in whole if record["pid"] == pid]
        assert [(r["number"], r["index"]) for r in own] == [(number, i) for i in range(50)]


def test_reopening_in_a_signal_handler(file: Path) -> None:
    setup_logging(file=file)
    before = signal.signal(signal.SIGUSR1, lambda *_: reopen_logs())
    try:
        moved = file.rename(file.with_suffix(".1"))
        os.kill(os.getpid(), signal.SIGUSR1)
        LOGGER.info("new")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert moved.read_text() == ""
    assert file.read_text().endswith("new\n")


def test_a_process_without_standard_error(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    setup_logging()
    LOGGER.info("to nobody")
    setup_logging(file=file)
    LOGGER.info("to somebody")
    assert len(file.read_text().splitlines()) == 1
