"""The file that says which process is the server.

Owns: ``PidFile``: writing it, refusing one whose process lives, replacing a stale one.
Leaves: when it is there to whoever starts and stops the server.
"""

import errno
import os
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from .errors import ImproperlyConfigured

if sys.platform != "win32":
    import fcntl

__all__ = ["PidFile"]

# What says that a file system has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
# How often, 10 ms apart, a file is looked at that another process is replacing.
_ATTEMPTS = 200


class PidFile:
    """The file at ``path``, which holds the number of the process that has created it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._owner: int | None = None

    def __repr__(self) -> str:
        return f"<PidFile {self.path}: {'not ours' if self._owner is None else self._owner}>"

    def create(self) -> None:
        """Write the file, whole from the first moment on, readable by everybody.

        A stale file is replaced: its process is gone, a zombie, or this very one (as
        after the restart of a container), or it names no process.

        Raises ``ImproperlyConfigured`` when the file belongs to a process that is
        running, or cannot be written.
        """
        if sys.platform == "win32":
            raise ImproperlyConfigured("there are no pid files on this system")
        try:
            self._create()
        except OSError as exc:
            why = exc.strerror
            if isinstance(exc, FileNotFoundError):
                why = f"the directory {self.path.parent} does not exist; make it first"
            raise ImproperlyConfigured(f"cannot write the pid file {self.path}: {why}") from exc
        self._owner = os.getpid()

    def remove(self) -> None:
        """Remove the file if it is still the one that this process has created."""
        owner, self._owner = self._owner, None
        if owner == os.getpid():
            with suppress(OSError):
                if _pid_in(self.path.read_bytes()) == owner:
                    self.path.unlink()

    def _create(self) -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o644)  # whatever the umask
                file.write(b"%d\n" % os.getpid())
            for _ in range(_ATTEMPTS):
                if self._put_in_place(draft) or self._replace_stale(draft):
                    return
                time.sleep(0.01)  # somebody else was faster: look again
            raise OSError(errno.EAGAIN, "another process has locked it")
        finally:
            draft.unlink(missing_ok=True)

    def _put_in_place(self, draft: Path) -> bool:
        """Give the file its name, unless there is one of that name."""
        try:
            self.path.hardlink_to(draft)
        except FileExistsError:
            return False
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self.path):
                return False
            draft.replace(self.path)
        return True

    def _replace_stale(self, draft: Path) -> bool:
        """Put the file in the place of a stale one, unless that has changed meanwhile."""
        try:
            status = self.path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EEXIST, "something else than a file is there")
            file = self.path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            self._refuse_live(_pid_in(file.read(32)))
            # Of two that find the same stale file, one may replace it.
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                pass  # a file system without locks
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.lstat()):
                    draft.replace(self.path)
                    return True
        return False

    def _refuse_live(self, pid: int | None) -> None:
        if pid is not None and pid != os.getpid() and _is_running(pid):
            raise ImproperlyConfigured(
                f"the pid file {self.path} belongs to process {pid}, which is running: stop that, "
                "or choose another file"
            )


def _pid_in(content: bytes) -> int | None:
    digits = content.strip()
    return (int(digits) or None) if digits.isdigit() else None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    try:
        # The state stands behind the name, which may contain anything.
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return True  # no /proc here
    return state not in (b"Z", b"X")
