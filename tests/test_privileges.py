"""Becoming another user: tried for real, in a process of its own, where root runs the tests."""

import os
import pwd
import re
import sys
from collections.abc import Callable

import pytest

from pulsar import privileges
from pulsar.errors import ImproperlyConfigured
from pulsar.privileges import drop_privileges, resolve_identity
from tests.support.privileges import unprivileged

# Under xdist a test process has a thread; the children of these tests touch nothing of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

NOBODY = pwd.getpwnam("nobody")
# No machine gives this number a name.
UNNAMED = 2_345_678_901


def told_by_child(function: Callable[[], object]) -> str:
    """Call ``function`` in a child, which must end; return what it returned or raised."""
    results, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                result = str(function())
            except BaseException as exc:
                result = f"{type(exc).__name__}: {exc}"
            os.write(told, result.encode())
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(results) as file:
        result = file.read()
    os.waitpid(pid, 0)
    return result


@pytest.mark.parametrize(
    ("user", "group", "identity"),
    [
        (None, None, None),
        ("nobody", None, (NOBODY.pw_uid, NOBODY.pw_gid)),
        (str(NOBODY.pw_uid), None, (NOBODY.pw_uid, NOBODY.pw_gid)),
        ("nobody", "0", (NOBODY.pw_uid, 0)),
        ("nobody", str(UNNAMED), (NOBODY.pw_uid, UNNAMED)),
        (str(UNNAMED), "0", (UNNAMED, 0)),
        (None, "0", (os.geteuid(), 0)),
        ("0", str(UNNAMED), (0, UNNAMED)),
        (str(os.geteuid()), None, (os.geteuid(), os.getegid())),
    ],
)
def test_names_and_numbers(
    user: str | None, group: str | None, identity: tuple[int, int] | None
) -> None:
    assert resolve_identity(user, group) == identity


@pytest.mark.parametrize(
    ("user", "group", "sentence"),
    [
        ("no-such-user", None, "there is no user 'no-such-user' on this machine: give the name or"),
        ("nobody", "no-such-group", "there is no group 'no-such-group' on this machine: give"),
        ("", None, "there is no user ''"),
        ("no\0body", None, "there is no user"),
        ("-1", None, "there is no user '-1'"),
        (str(2**32 - 1), "0", "there is no user '4294967295'"),
        ("9" * 30, "0", "there is no user '9999"),
        ("0", "9" * 30, "there is no group '9999"),
        (str(UNNAMED), None, f"user {UNNAMED} has no entry on this machine that would name its"),
    ],
)
def test_who_is_unknown_is_refused(user: str, group: str | None, sentence: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(sentence)):
        resolve_identity(user, group)
    with pytest.raises(ImproperlyConfigured, match=re.escape(sentence)):
        drop_privileges(user, group)


def test_who_it_is_already() -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()
    drop_privileges(None, None)
    drop_privileges(str(os.getuid()), None)
    drop_privileges(str(os.getuid()), str(os.getgid()))
    drop_privileges(None, str(os.getgid()))
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


def test_an_ordinary_user_cannot_become_another() -> None:
    sentence = r"cannot run as user 4711, group 0: Operation not permitted; only root can become "
    with unprivileged(), pytest.raises(ImproperlyConfigured, match=sentence):
        drop_privileges("4711", "0")
    with unprivileged(), pytest.raises(ImproperlyConfigured, match="cannot run as group 4711: Ope"):
        drop_privileges(None, "4711")


def report() -> str:
    return f"{os.getresuid()} {os.getresgid()} {os.getgroups()}"


@root_only
@pytest.mark.parametrize(
    ("user", "group", "after"),
    [
        ("nobody", None, (NOBODY.pw_uid, NOBODY.pw_gid)),
        (str(NOBODY.pw_uid), None, (NOBODY.pw_uid, NOBODY.pw_gid)),
        ("nobody", "4712", (NOBODY.pw_uid, 4712)),
        ("nobody", "0", (NOBODY.pw_uid, 0)),
        ("4711", "4712", (4711, 4712)),
        (None, "4712", (0, 4712)),
    ],
)
def test_root_becomes_another(user: str | None, group: str | None, after: tuple[int, int]) -> None:
    environ = {name: os.environ.get(name) for name in ("HOME", "USER", "LOGNAME")}

    def become() -> str:
        os.setgroups([0, 4713])
        drop_privileges(user, group)
        drop_privileges(user, group)
        assert {name: os.environ.get(name) for name in environ} == environ
        return report()

    uid, gid = after
    assert told_by_child(become) == f"{(uid,) * 3} {(gid,) * 3} {[gid]}"


@root_only
def test_a_user_has_its_other_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(os, "initgroups", lambda *args: given.append(args))

    def become() -> object:
        drop_privileges("nobody", "4712")
        return given

    assert told_by_child(become) == str([("nobody", 4712)])


@root_only
def test_there_is_no_way_back() -> None:
    def turn_back() -> None:
        drop_privileges("nobody", None)
        os.setuid(0)

    assert told_by_child(turn_back).startswith("PermissionError")

    def become_another() -> None:
        drop_privileges("nobody", None)
        drop_privileges("4711", "4712")

    assert told_by_child(become_another).startswith(
        "ImproperlyConfigured: cannot run as user 4711, group 4712: Operation not permitted"
    )


@root_only
def test_rights_that_would_remain_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if setuid changed the effective user only, which can be changed back.
    monkeypatch.setattr(os, "setuid", os.seteuid)
    answer = told_by_child(lambda: drop_privileges("nobody", None))
    assert answer == "ImproperlyConfigured: cannot run as user nobody: root's rights would remain"
    monkeypatch.undo()
    # As if the system let everybody become root.
    monkeypatch.setattr(privileges, "_can_become_root", lambda: True)
    assert told_by_child(lambda: drop_privileges("nobody", None)) == answer


@root_only
def test_an_error_that_is_not_about_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    def setgroups(groups: list[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "setgroups", setgroups)
    assert told_by_child(lambda: drop_privileges("4711", "4712")).endswith(": Invalid argument")


def test_a_system_without_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert resolve_identity(None, None) is None
    with pytest.raises(ImproperlyConfigured, match="cannot be changed on this system"):
        resolve_identity("nobody", None)
