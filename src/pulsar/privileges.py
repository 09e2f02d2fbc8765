"""As whom the server runs.

Owns: resolving a user and a group, and becoming them for good.
Leaves: when that happens to ``actors``; the owners of sockets and files to those who make them.
"""

import os
import sys

from .errors import ImproperlyConfigured

if sys.platform != "win32":
    import grp
    import pwd

__all__ = ["drop_privileges", "resolve_identity"]

# The greatest number means "nobody in particular" to the system.
_MAX_ID = 2**32 - 2


def resolve_identity(user: str | None, group: str | None) -> tuple[int, int] | None:
    """The numbers of ``user`` and ``group``, each a name or a number; None: neither is given.

    Without a group it is the user's own, without a user it is that of this process.

    Raises ``ImproperlyConfigured`` when one of them is unknown.
    """
    if user is None and group is None:
        return None
    if sys.platform == "win32":
        raise ImproperlyConfigured("user and group cannot be changed on this system")
    gid = None if group is None else _group(group)
    if user is None:
        uid = os.geteuid()
    else:
        uid, own_gid = _user(user)
        gid = own_gid if gid is None else gid
    if gid is None:
        raise ImproperlyConfigured(
            f"user {user} has no entry on this machine that would name its group: give group, too"
        )
    return uid, gid


def drop_privileges(user: str | None, group: str | None) -> None:
    """Become ``user`` and ``group``, with the user's other groups, and nobody else again.

    Nothing happens when this process runs as them already. The environment
    stays as it is.

    Raises ``ImproperlyConfigured`` when they are unknown, or when this process may
    not become them or could turn back.
    """
    identity = resolve_identity(user, group)
    if identity is None or _runs_as(*identity):
        return
    uid, gid = identity
    wanted = ", ".join(
        f"{kind} {name}" for kind, name in (("user", user), ("group", group)) if name is not None
    )
    try:
        _become(uid, gid, None if user is None else _name(uid))
    except OSError as exc:
        who = "; only root can become somebody else" if isinstance(exc, PermissionError) else ""
        raise ImproperlyConfigured(f"cannot run as {wanted}: {exc.strerror}{who}") from exc
    if not _runs_as(uid, gid) or (uid != 0 and _can_become_root()):
        raise ImproperlyConfigured(f"cannot run as {wanted}: root's rights would remain")


def _become(uid: int, gid: int, name: str | None) -> None:
    # The user comes last: it takes away the right to do the rest.
    if name is None:
        os.setgroups([gid])
    else:
        os.initgroups(name, gid)
    os.setgid(gid)
    os.setuid(uid)


def _runs_as(uid: int, gid: int) -> bool:
    return (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) == (uid, uid, gid, gid)


def _can_become_root() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True


def _user(user: str) -> tuple[int, int | None]:
    """A user's number, and that of the group it would have; None: nobody knows."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    except (KeyError, ValueError, OverflowError):
        uid, gid = _unnamed("user", user), None
    # Who stays who they are keep their group, whatever made it theirs.
    return uid, os.getegid() if uid == os.geteuid() else gid


def _group(group: str) -> int:
    try:
        entry = grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)
    except (KeyError, ValueError, OverflowError):
        return _unnamed("group", group)
    return entry.gr_gid


def _unnamed(kind: str, text: str) -> int:
    """The number that ``text`` is: in a container many have no name."""
    if text.isdecimal() and int(text) <= _MAX_ID:
        return int(text)
    raise ImproperlyConfigured(
        f"there is no {kind} {text!r} on this machine: give the name or the number of one"
    )


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
