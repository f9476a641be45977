"""The command line: parse, call one function, print. No tensors, and no torch before work starts.

Exit codes: 0 done (also when there was nothing to do), 1 bug, 2 usage, 3 bad input or
configuration, 4 store invalid or identity mismatch, 5 too many failed items, 75 temporary,
130 and 143 stopped by SIGINT and SIGTERM, 141 the reader of its output went away.
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence

from svp.cli.stopping import Signals, Stopped

# Tensor libraries may otherwise start one busy thread per core in every worker process.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_STOPPED = "Stopped. Run the same command again to continue."


# Paths that a person can correct, and conditions that pass.
_WRONG_PATH = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ENOTDIR,
    errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PASSING = {
    errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE,
    errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH,
}  # fmt: skip


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _said_by_system(error: OSError) -> str:
    # The second name is the one the user gave; the first is often a temporary file.
    name = error.filename2 or error.filename
    reason = error.strerror or _one_line(error)
    return f"{reason}: {name}." if name else f"{reason}."


def _fail(code: int, message: str) -> int:
    with contextlib.suppress(OSError):  # stderr may be gone, the exit code still speaks
        print(f"svp: {message}", file=sys.stderr, flush=True)
    return code


def _pipe_closed() -> int:
    """The reader of a pipe went away (`svp … | head`): nothing to tell anyone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _of_system(error: OSError) -> int | None:
    """Return the exit code for what the operating system refused, or None for a bug."""
    if error.errno in _FULL:
        message = f"{_said_by_system(error)} Free some space and run the same command again."
        return _fail(75, message)
    if error.errno in _PASSING:
        return _fail(75, f"{_said_by_system(error)} Run the same command again.")
    if error.errno in _WRONG_PATH:
        return _fail(3, f"{_said_by_system(error)} Correct the path or its permissions.")
    return _pipe_closed() if error.errno == errno.EPIPE else None


def _of_store(error: Exception) -> int | None:
    """Return the exit code for what the feature store explains, None if it is not its error."""
    # The store is imported by the commands that need it: `svp --help` has to start fast.
    errors = sys.modules.get("feature_store.errors")
    if errors is None or not isinstance(error, errors.FeatureStoreError):
        return None
    if isinstance(error, errors.StorageUnavailableError):
        return 75
    # What leads nowhere is the caller's to correct; damage and mismatches are the store's.
    correctable = (
        errors.StoreNotFoundError, errors.StoreInputError, errors.PoolError,
        errors.MissingRowsError,
    )  # fmt: skip
    return 3 if isinstance(error, correctable) else 4


def run(arguments: Sequence[str], signals: Signals | None = None) -> int:
    """Run one command and return its exit code; a bug's traceback goes to stderr.

    Args:
        arguments: The words behind `svp`.
        signals: Of the process, if it is this command's own.
    """
    try:
        return _run(arguments, signals)
    except (KeyboardInterrupt, Stopped):
        return _stopped(signals)


def _run(arguments: Sequence[str], signals: Signals | None) -> int:
    from svp.cli.app import app
    from svp.errors import SvpError

    try:
        outcome = app(list(arguments), standalone_mode=False, prog_name="svp")
    except Exception as error:
        if signals is not None and signals.asked is not None:
            return _stopped(signals)
        if isinstance(error, SvpError):
            return _fail(error.exit_code, _one_line(error))
        code = _of_store(error)
        if code is not None:
            return _fail(code, _one_line(error))
        if isinstance(error, OSError):
            code = _of_system(error)
            if code is None:
                raise
            return code
        return _usage(error)
    except SystemExit as leaving:
        # Typer leaves by itself when the reader of a pipe is gone.
        cause = leaving.__context__
        if isinstance(cause, OSError) and cause.errno == errno.EPIPE:
            return _pipe_closed()
        raise
    return outcome if isinstance(outcome, int) else 0


def _stopped(signals: Signals | None) -> int:
    number: int = signal.SIGINT
    if signals is not None:
        signals.release()  # asked twice: Python's own end, which waits for threads, needs no order
        number = signals.asked or number
    return _fail(128 + number, _STOPPED)


def _usage(error: Exception) -> int:
    # Typer's usage errors; it has vendored click in some versions and not in others, so they
    # are known by what they can do.
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        print(format_message(), file=sys.stderr)
        return 2
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "svp"
    message = " ".join(format_message().split())
    return _fail(2, f"{message.removesuffix('.')}. Try: {where} --help")


def main() -> None:
    """Run the command line as a process."""
    with Signals() as signals:
        code = run(sys.argv[1:], signals)
    sys.exit(code)
