"""One command at a time writes a folder: two that select at once would write the same round."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from svp.errors import TemporaryError

# Where nothing can be written there is nothing to protect: the write itself says what is wrong.
_UNWRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def alone(folder: Path, work: str) -> Iterator[None]:
    """Keep other commands of svp from writing `folder` as long as this one does.

    The lock is on the hidden file `.lock` in the folder and belongs to the process, so that a kill
    releases it at once; otherwise the file is gone afterwards. It is advisory, and on a network
    file system as good as that system's locks. Without a system that has such locks this does
    nothing.

    Args:
        folder: What is written; it need not exist yet.
        work: What this command is doing, for the message of the other one, such as `svp select`.

    Raises:
        TemporaryError: Another process holds the lock.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder / ".lock", folder, work)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        lock = None
    if lock is None:
        yield
        return
    with lock:
        try:
            yield
        finally:
            # While it is still locked: whoever waits for this very file sees that it is gone.
            (folder / ".lock").unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # not empty: something was written
                    folder.rmdir()


def _locked(path: Path, folder: Path, work: str) -> TextIO | None:
    """Return the open, locked file; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                other = file.read().strip() or "another command"
            raise TemporaryError(
                f"One command at a time must write {folder}. Got {work} while {other} is at "
                "work there. Run it again when that has ended."
            ) from error
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            file.truncate(0)
            file.write(work)
            file.flush()
            return file
        file.close()  # the one before deleted it between the two calls
