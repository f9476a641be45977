"""The command line: parse, call one function, print. No tensors, and no torch before work starts.

Exit codes: 0 done (also when there was nothing to do), 1 bug, 2 usage, 3 bad input or
configuration, 4 store invalid or identity mismatch, 5 too many failed items, 75 temporary,
130 and 143 stopped by SIGINT and SIGTERM.
"""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

# Tensor libraries may otherwise start one busy thread per core in every worker process.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class _Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `finally` runs."""


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise _Terminated


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(code: int, message: str) -> int:
    print(f"svp: {message}", file=sys.stderr, flush=True)
    return code


def _is_from_store(error: Exception) -> bool:
    # The store is imported by the commands that need it: `svp --help` has to start fast.
    errors = sys.modules.get("feature_store.errors")
    return errors is not None and isinstance(error, errors.FeatureStoreError)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; a bug's traceback goes to stderr."""
    from svp.cli.app import app
    from svp.errors import SvpError

    try:
        outcome = app(list(arguments), standalone_mode=False, prog_name="svp")
    except SvpError as error:
        return _fail(error.exit_code, _one_line(error))
    except KeyboardInterrupt:
        return _fail(130, "Stopped. Run the same command again to continue.")
    except _Terminated:
        return _fail(143, "Stopped. Run the same command again to continue.")
    except OSError as error:
        if _is_from_store(error):
            return _fail(4, _one_line(error))
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return _fail(75, f"{_one_line(error)}. Free some space and run the same command again.")
        if error.errno in {errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR}:
            return _fail(3, f"{_one_line(error)}.")
        if error.errno == errno.EPIPE:
            # The reader of a pipe went away (`svp … | head`): nothing to tell anyone.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        raise
    except Exception as error:
        if _is_from_store(error):
            return _fail(4, _one_line(error))
        # Typer's usage errors; it has vendored click in some versions and not in others, so they
        # are known by what they can do.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "svp"
        message = " ".join(format_message().split())
        return _fail(2, f"{message} Try: {where} --help")
    return outcome if isinstance(outcome, int) else 0


def main() -> None:
    """Run the command line as a process."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.exit(run(sys.argv[1:]))
