"""Applications: their settings from everywhere, their start, their stop, their reload."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.application import Application, get_application
from pulsar.apps.socket import SocketServer
from pulsar.config import Setting
from pulsar.errors import ImproperlyConfigured
from pulsar.protocols import ProtocolConsumer
from tests.support.process import MODES, ServerProcess, clean_environment
from tests.support.serving import PATIENCE, logging_kept, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Greeting(Setting):
    name = "greeting"
    app = "tested"
    section = "Tested"
    flags = ("--greeting",)
    default = "hello"
    desc = "What a visitor is told first."
    change = "live"


class Pace(Setting):
    name = "pace"
    app = "tested"
    section = "Tested"
    flags = ("--pace",)
    default = "slow"
    choices = ("slow", "fast")
    desc = "How fast it goes."
    change = "new workers"


class Idle(Application):
    """An application that serves nothing.

    Not even this line is for --help.
    """

    cfg_apps = ("tested",)

    def __init__(self, *args: Any, **params: Any) -> None:
        # Without workers: a process that runs tests is not to be forked.
        super().__init__(*args, **{"concurrency": "thread", **params})


class Recorder(Idle):
    """Keeps what it is called with."""

    def __init__(self, *args: Any, **params: Any) -> None:
        self.calls: list[Any] = []
        super().__init__(*args, **params)

    async def monitor_start(self, monitor: Any) -> None:
        self.calls.append(("monitor_start", monitor))

    async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
        self.calls.append(("worker_start", worker))

    async def worker_stop(self, worker: Any, timeout: float) -> None:
        self.calls.append(("worker_stop", timeout))

    async def monitor_stop(self, monitor: Any) -> None:
        self.calls.append(("monitor_stop", monitor))

    async def apply_settings(self, cfg: Any, changed: list[str]) -> None:
        if cfg.greeting == "impossible":
            raise ImproperlyConfigured("nobody can be greeted like that")
        await super().apply_settings(cfg, changed)
        self.calls.append(("apply_settings", changed))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture(autouse=True)
def kept_logging() -> Iterator[None]:
    with logging_kept():
        yield


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the command line and the environment of this process."""
    for variable in (*filter(lambda name: name.startswith("PULSAR_"), os.environ),):
        monkeypatch.delenv(variable)
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)

    def command(*arguments: str, **environ: str) -> None:
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return command


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Write a settings file; gives its path."""

    def write(content: str) -> str:
        path = tmp_path / "tested.toml"
        path.write_text(content)
        return str(path)

    return write


def start(application: Application) -> None:
    """Start in this thread, stop as soon as it is served."""
    application.bind_event("start", lambda arg, exc=None: application.stop())
    application.start()


def exits(application: Application, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of ``start``, and what it has said."""
    with pytest.raises(SystemExit) as caught:
        application.start()
    out, err = capsys.readouterr()
    assert out == ""
    assert isinstance(caught.value.code, int)
    return caught.value.code, err


# -- settings


def test_settings_are_keywords() -> None:
    application = Idle(greeting="hi", workers=3)
    assert (application.cfg.greeting, application.cfg.workers) == ("hi", 3)
    assert application.cfg.origin("greeting") == "keyword"
    assert application.cfg.origin("pace") == "default"


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"greting": "hi"}, r"greting is not a setting \(keyword\); did you mean greeting\?"),
        ({"bind": ":0"}, r"bind is not a setting \(keyword\)"),
        ({"pace": "fst"}, r"pace cannot be 'fst': choose slow or fast; did you mean fast\?"),
        ({"workers": "many"}, "workers cannot be 'many': give a whole number, 0 or more"),
    ],
)
def test_bad_keywords_are_refused_at_once(keywords: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=sentence):
        Idle(**keywords)


def test_flag_before_environment_before_file_before_keyword(
    command: Callable[..., None], config: Callable[[str], str]
) -> None:
    path = config('greeting = "file"\npace = "fast"\nworkers = 3\n')
    command("--greeting", "flag", "-c", path, PULSAR_GREETING="environment", PULSAR_WORKERS="0")
    application = Idle(greeting="keyword", pace="slow", workers=9, log_level="error")
    start(application)
    cfg = application.cfg
    assert {name: (cfg.get(name), cfg.origin(name)) for name in ("greeting", "workers")} == {
        "greeting": ("flag", "flag --greeting"),
        "workers": (0, "environment PULSAR_WORKERS"),
    }
    assert (cfg.pace, cfg.log_level, cfg.debug) == ("fast", "error", False)
    assert cfg.origin("pace").startswith("file ")
    assert [cfg.origin("log_level"), cfg.origin("debug")] == ["keyword", "default"]


def test_without_load_config_nothing_is_read(command: Callable[..., None]) -> None:
    command("--greeting", "flag", "--no-such-flag", PULSAR_PACE="fast")
    application = Idle(load_config=False, greeting="keyword")
    start(application)
    assert (application.cfg.greeting, application.cfg.pace) == ("keyword", "slow")


def test_settings_that_were_loaded_are_not_read_again(command: Callable[..., None]) -> None:
    command("--no-such-flag")
    application = Idle()
    application.load_config(["--greeting", "mine"], {})
    start(application)
    assert application.cfg.greeting == "mine"


def test_help_says_what_the_application_is(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command("--help")
    with pytest.raises(SystemExit) as caught:
        Idle().start()
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "An application that serves nothing.\n" in text
    assert "Not even this line" not in text
    assert "[default: hello; PULSAR_GREETING]" in " ".join(text.split())
    with pytest.raises(SystemExit):
        Idle(description="A good description.").start()
    text = capsys.readouterr().out
    assert "A good description." in text
    assert "An application that serves nothing." not in text


def test_print_config_prints_and_does_not_serve(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command("--print-config", PULSAR_GREETING="hi")
    application = Recorder()
    application.start()
    assert re.search(
        r'^greeting += "hi" +# environment PULSAR_GREETING$', capsys.readouterr().out, re.M
    )
    assert application.calls == []


def test_check_checks_and_does_not_serve(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    class Picky(Recorder):
        def check(self) -> None:
            if self.callable is None:
                raise ImproperlyConfigured("nothing to be picky about")

    command("--check")
    application = Picky("thing")
    application.start()
    assert capsys.readouterr().out == "picky: settings and application are fine\n"
    assert application.calls == []
    assert exits(Picky(), capsys) == (3, "picky: error: nothing to be picky about\n")


# -- exit codes


@pytest.mark.parametrize(
    ("arguments", "environ", "sentence"),
    [
        (
            ["--greting", "hi"],
            {},
            "script.py: error: unknown flag --greting; did you mean --greeting?",
        ),
        (["--pace", "fst"], {}, "script.py: error: argument --pace: cannot be 'fst': choose slow"),
        (["extra"], {}, "script.py: error: unexpected argument 'extra'"),
        (
            [],
            {"PULSAR_PACE": "fst"},
            "idle: error: pace cannot be 'fst': choose slow or fast; did you",
        ),
        (
            ["-c", "/no/such.toml"],
            {},
            "script.py: error: argument -c/--config: cannot be '/no/such",
        ),
    ],
)
def test_what_was_typed_wrong_ends_with_code_2(
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environ: dict[str, str],
    sentence: str,
) -> None:
    command(*arguments, **environ)
    code, err = exits(Idle(), capsys)
    assert code == 2
    assert err.startswith(sentence)
    assert err.count("\n") == 1


def test_an_unknown_key_in_the_file_ends_with_code_2(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], config: Callable[[str], str]
) -> None:
    path = config('greting = "hi"\n')
    command("-c", path)
    sentence = f"idle: error: greting is not a setting (file {path}); did you mean greeting?\n"
    assert exits(Idle(), capsys) == (2, sentence)


def test_serving_that_cannot_start_ends_with_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    class Unlucky(Recorder):
        async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
            raise ImproperlyConfigured("there is no luck to be had")

    application = Unlucky(load_config=False)
    assert exits(application, capsys) == (3, "unlucky: error: there is no luck to be had\n")
    assert application.names == ["monitor_start", "monitor_stop"]
    assert not application.fired_event("start")
    assert application.fired_event("stop")


def test_an_error_in_user_code_is_not_swallowed() -> None:
    class Broken(Recorder):
        async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
            raise LookupError("mine")

    application = Broken(load_config=False)
    with pytest.raises(LookupError, match="mine"):
        application.start()
    assert application.names == ["monitor_start", "monitor_stop"]


# -- the name


def test_the_name_is_that_of_the_class_unless_it_is_given(command: Callable[..., None]) -> None:
    assert Idle().name == "idle"
    assert Idle(name="joe").name == "joe"
    application = Idle(name="joe")
    application.load_config(["--name", "jim"], {})
    assert application.name == "jim"


def test_a_running_application_is_found_by_its_name() -> None:
    with serving(Idle(load_config=False, name="found")) as application:
        assert asyncio.run(get_application("found")) is application
        assert application.info() == {"name": "found", "running": True}
        sentence = "no application is called 'lost'; running: found"
        with pytest.raises(LookupError, match=sentence):
            asyncio.run(get_application("lost"))
    with pytest.raises(LookupError, match="no application is called 'found'; running: none"):
        asyncio.run(get_application("found"))
    assert application.info() == {"name": "found", "running": False}


def test_two_applications_of_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Idle(load_config=False, name="twin")) as first:
        second = Idle(load_config=False, name="twin")
        sentence = "twin: error: an application called twin is running already\n"
        assert exits(second, capsys) == (3, sentence)
        assert asyncio.run(get_application("twin")) is first
        with serving(Idle(load_config=False, name="other")) as other:
            assert asyncio.run(get_application("other")) is other


# -- start and stop


def test_the_order_of_start_and_stop() -> None:
    application = Recorder(load_config=False, graceful_timeout=7)
    for name in ("start", "stop"):
        application.bind_event(
            name, lambda arg, exc=None, name=name: application.calls.append((name, arg))
        )
    start(application)
    assert application.names == [
        "monitor_start",
        "worker_start",
        "start",
        "worker_stop",
        "monitor_stop",
        "stop",
    ]
    calls = dict(application.calls)
    assert calls["start"] is calls["stop"] is application
    assert calls["worker_stop"] == 7
    # One object plays both parts in a single process.
    assert calls["worker_start"] is calls["monitor_start"] is calls["monitor_stop"]
    assert calls["worker_start"].cfg is application.cfg
    assert calls["worker_start"].info() == {
        "name": "recorder",
        "pid": os.getpid(),
        "stopping": True,
    }


def test_a_quick_stop_leaves_no_time() -> None:
    application = Recorder(load_config=False)
    with serving(application):
        application.stop(graceful=False)
    assert ("worker_stop", 0.0) in application.calls


def test_a_second_stop_makes_a_graceful_one_quick() -> None:
    class Slow(Recorder):
        stopping = threading.Event()

        async def worker_stop(self, worker: Any, timeout: float) -> None:
            await super().worker_stop(worker, timeout)
            if timeout:
                self.stopping.set()
                self.now = asyncio.Event()
                await self.now.wait()
            else:
                self.now.set()

    application = Slow(load_config=False, graceful_timeout=PATIENCE)
    with serving(application):
        application.stop()
        assert application.stopping.wait(PATIENCE)
        application.stop(graceful=False)
    assert [timeout for name, timeout in application.calls if name == "worker_stop"] == [
        PATIENCE,
        0.0,
    ]


def test_stop_without_a_start_does_nothing() -> None:
    application = Recorder(load_config=False)
    application.stop()
    start(application)
    application.stop()
    assert application.names.count("worker_stop") == 1


def test_an_application_starts_once() -> None:
    application = Recorder(load_config=False)
    start(application)
    with pytest.raises(RuntimeError, match="recorder has been started before: make another"):
        application.start()


def test_start_is_refused_inside_a_loop() -> None:
    application = Recorder(load_config=False)

    async def main() -> None:
        sentence = r"Recorder\.start\(\) blocks, and an event loop runs here: await create_server"
        with pytest.raises(RuntimeError, match=sentence):
            application.start()

    asyncio.run(main())
    assert application.calls == []


def test_start_in_a_thread_stop_from_another(loop_kind: str) -> None:
    application = SocketServer(
        ProtocolConsumer, False, bind="127.0.0.1:0", event_loop=loop_kind, name="threaded"
    )
    addresses: list[Any] = []
    application.bind_event("start", lambda arg, exc=None: addresses.append(arg.address))
    with serving(application):
        assert addresses == [application.address]
        host, port = application.address
        assert host == "127.0.0.1"
        assert port > 0


def test_the_event_loop_is_the_one_that_was_chosen(loop_kind: str) -> None:
    class Looking(Recorder):
        async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
            self.calls.append(("loop", type(asyncio.get_running_loop()).__module__))
            self.calls.append(("debug", asyncio.get_running_loop().get_debug()))

    application = Looking(load_config=False, event_loop=loop_kind, debug=True)
    start(application)
    calls = dict(application.calls)
    assert calls["loop"].split(".")[0] == loop_kind
    assert calls["debug"] is True


def test_without_workers_one_process_serves(caplog: pytest.LogCaptureFixture) -> None:
    pids: list[int] = []

    class Here(Recorder):
        async def worker_start(self, worker: Any, exc: BaseException | None = None) -> None:
            pids.append(os.getpid())

    for settings in ({"workers": 3}, {"workers": 0, "concurrency": "process"}):
        start(Here(load_config=False, **settings))
    assert pids == [os.getpid()] * 2
    assert not any("workers" in message for message in caplog.messages)


@pytest.mark.parametrize("settings", [{"workers": 3}, {"concurrency": "process"}])
def test_workers_that_cannot_be_had_are_refused(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a thread: only one that is not asked for is done without."""

    class Asked(Application):
        """Asked for workers."""

    with pytest.raises(SystemExit) as caught, serving(Asked(load_config=False, **settings)):
        pass
    assert caught.value.code == 3
    assert capsys.readouterr().err == (
        "asked: error: worker processes need the main thread of a system with fork: "
        "set concurrency to thread\n"
    )
    with serving(Asked(load_config=False)) as application:
        assert application.info() == {"name": "asked", "running": True}


def test_a_variable_of_no_setting_is_reported(
    command: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    command(PULSAR_GRETING="hi")
    start(Idle())
    assert caplog.messages[0] == (
        "the environment variable PULSAR_GRETING belongs to no setting; "
        "did you mean PULSAR_GREETING?"
    )


def test_chdir(
    command: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tested.toml").write_text('greeting = "hi"\n')
    monkeypatch.chdir(tmp_path)
    command("--chdir", "elsewhere", "-c", "tested.toml")
    application = Recorder()
    application.bind_event("start", lambda arg, exc=None: seen.append(Path.cwd()))
    seen: list[Path] = []
    start(application)
    assert seen == [tmp_path / "elsewhere"]
    assert application.cfg.greeting == "hi"
    # Relative paths are those of the start, at a reload, too.
    (tmp_path / "tested.toml").write_text('greeting = "hey"\n')
    asyncio.run(application.reload())
    assert application.cfg.greeting == "hey"
    assert Path.cwd() == tmp_path / "elsewhere"


# -- reload


@pytest.fixture
def reloading(config: Callable[[str], str]) -> Iterator[Any]:
    """An application with a settings file, and a function that changes it and reloads."""
    path = config('greeting = "hello"\nlog_level = "info"\n')
    application = Recorder(pace="slow")
    application.load_config(["-c", path, "--workers", "0"], {})

    def reload(content: str) -> None:
        config(content)
        asyncio.run(application.reload())

    return application, reload


def test_a_reload_takes_live_settings_each_time(reloading: Any) -> None:
    application, reload = reloading
    for level in ("debug", "error", "info"):
        reload(f'greeting = "{level}"\nlog_level = "{level}"\n')
        assert application.cfg.log_level == application.cfg.greeting == level
        assert application.cfg.origin("greeting").startswith("file ")
        assert logging.getLogger("pulsar").level == getattr(logging, level.upper())
    reload("")
    assert application.cfg.greeting == "hello"
    assert application.cfg.origin("greeting") == "default"
    assert [sorted(changed) for _, changed in application.calls] == [
        ["greeting", "log_level"],
        ["greeting", "log_level"],
        ["greeting", "log_level"],
        ["greeting"],
    ]


def test_a_reload_leaves_what_a_flag_said(reloading: Any) -> None:
    application, reload = reloading
    reload("workers = 7\n")
    assert application.cfg.workers == 0
    assert application.cfg.origin("workers") == "flag --workers"


def test_a_reload_reports_what_needs_a_restart(
    reloading: Any, caplog: pytest.LogCaptureFixture
) -> None:
    application, reload = reloading
    caplog.set_level("INFO")
    reload('greeting = "hey"\nlog_level = "info"\npace = "fast"\nname = "joe"\n')
    assert caplog.messages == [
        "reloaded; settings that have changed: greeting",
        "these settings have changed and need a restart: name, pace",
    ]
    assert (application.cfg.greeting, application.cfg.pace) == ("hey", "slow")
    assert application.name == "recorder"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('greeting = "impossible"\nlog_level = "debug"\n', "nobody can be greeted like that"),
        ('log_level = "loud"\n', "log_level cannot be 'loud': choose debug"),
        ('greting = "hey"\n', r"greting is not a setting \(file .*\); did you mean greeting\?"),
        ("greeting = hey\n", "is not valid TOML"),
    ],
)
def test_a_reload_that_fails_changes_nothing(reloading: Any, content: str, sentence: str) -> None:
    application, reload = reloading
    logging.getLogger("pulsar").setLevel("INFO")
    with pytest.raises(ImproperlyConfigured, match=sentence):
        reload(content)
    assert (application.cfg.greeting, application.cfg.log_level) == ("hello", "info")
    assert logging.getLogger("pulsar").level == logging.INFO
    reload('greeting = "hey"\n')
    assert application.cfg.greeting == "hey"


def test_a_reload_when_the_file_is_gone(reloading: Any, tmp_path: Path) -> None:
    application, _ = reloading
    (tmp_path / "tested.toml").unlink()
    sentence = f"cannot read {tmp_path}/tested.toml: No such file or directory"
    with pytest.raises(ImproperlyConfigured, match=sentence):
        asyncio.run(application.reload())
    assert application.cfg.greeting == "hello"


def test_an_application_that_read_nothing_has_nothing_to_reload() -> None:
    application = Recorder(load_config=False, greeting="hi")
    asyncio.run(application.reload())
    assert application.calls == [("apply_settings", [])]
    assert application.cfg.greeting == "hi"


# -- in a process of its own

FAILING = """
from pulsar import Application, ImproperlyConfigured

class Failing(Application):
    async def worker_start(self, worker, exc=None):
        raise {error}

if __name__ == "__main__":
    Failing().start()
"""


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ImproperlyConfigured('no luck')", "failing: error: no luck\n"),
        (
            "LookupError('mine')",
            '.*Traceback .*failing.py", line 6, in worker_start\n.*\nLookupError: mine\n',
        ),
    ],
)
def test_a_program_that_cannot_serve_ends(
    tmp_path: Path, error: str, said: str, options: Sequence[str]
) -> None:
    (tmp_path / "failing.py").write_text(FAILING.format(error=error))
    done = subprocess.run(
        [sys.executable, "failing.py", *options],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert re.fullmatch(said, done.stderr, re.DOTALL), done.stderr


SCRIPT = """
from pulsar import ProtocolConsumer
from pulsar.apps.socket import SocketServer

class Echo(ProtocolConsumer):
    def data_received(self, data):
        self.write(data)
        self.finished()

if __name__ == "__main__":
    SocketServer(Echo, name="scripted", bind="127.0.0.1:0").start()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("options", MODES)
def test_signals_that_stop(script: Path, number: signal.Signals, options: Sequence[str]) -> None:
    with ServerProcess(script, *options, cwd=script.parent) as server:
        assert server.stop(number) == 0
        how = "at once" if number == signal.SIGQUIT else "gracefully"
        assert f"{number.name}: stopping {how}" in server.stderr
        assert server.stderr.endswith("scripted has stopped\n")


def test_hup_without_workers_takes_live_settings(script: Path) -> None:
    reloads(
        script,
        ["--workers", "0"],
        "SIGHUP: reloading settings and certificates",
        [
            ('log_level = "debug"\nkeep_alive = 5\n', "settings that have changed: log_level"),
            ("keep_alive = 5\n", "settings that have changed: log_level"),
            ("keep_alive = 6\n", "need a restart: keep_alive"),
            ("keep_alive = 'x'\n", "not reloaded, everything goes on as it was: keep_alive"),
            ("keep_alive = 5\n", "settings that have changed: none"),
        ],
    )


def test_hup_makes_workers_with_the_new_settings(script: Path) -> None:
    reloads(
        script,
        [],
        "SIGHUP: reloading",
        [
            ('log_level = "debug"\nkeep_alive = 5\n', "reloaded: generation 2 serves"),
            ("keep_alive = 6\n", "reloaded: generation 3 serves"),
            ("keep_alive = 'x'\n", "not reloaded, everything goes on as it was: "),
            ('keep_alive = 5\npidfile = "other.pid"\n', "need a restart: pidfile"),
        ],
    )


def reloads(
    script: Path, options: Sequence[str], heard: str, attempts: list[tuple[str, str]]
) -> None:
    """Reload with each content of the settings file; what is said each time."""
    config = script.with_name("tested.toml")
    config.write_text("keep_alive = 5\n")
    with ServerProcess(script, "-c", config, *options, cwd=script.parent) as server:
        for attempt, (content, said) in enumerate(attempts, 1):
            before = server.stderr.count(said)
            config.write_text(content)
            server.send(signal.SIGHUP)
            server.wait_for(heard, attempt)
            server.wait_for(said, before + 1)
        assert server.stop() == 0
