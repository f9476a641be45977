"""One command at a time writes a folder: two that select at once would write the same round."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from svp.errors import TemporaryError

# Where nothing can be written there is nothing to protect: the write itself says what is wrong.
_UNWRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def alone(folder: Path, work: str) -> Iterator[None]:
    """Keep other commands of svp from writing `folder` as long as this one does.

    The lock is on the hidden file `.lock` in the folder and belongs to the process, so that a kill
    releases it at once. It is advisory, and on a network file system as good as that system's
    locks. Without a system that has such locks this does nothing.

    Args:
        folder: What is written; it need not exist yet.
        work: What this command is doing, for the message of the other one, such as `svp select`.

    Raises:
        TemporaryError: Another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / ".lock").open("a+", encoding="utf-8"))
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                other = file.read().strip() or "another command"
                raise TemporaryError(
                    f"One command at a time must write {folder}. Got {work} while {other} is at "
                    "work there. Run it again when that has ended."
                ) from error
            file.truncate(0)
            file.write(work)
            file.flush()
        yield
