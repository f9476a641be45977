"""SIGINT and SIGTERM end a command at once, with every `finally` on the way out and one line.

A handler raises where the main thread happens to be. Code there may not let the exception pass: a
library that catches everything, a finaliser (`__del__`), whose exceptions Python prints and drops,
or a module written in C that fails in its own way when its import is interrupted. So imports of
such modules are waited for, an exception that is dropped brings the signal again, and whatever
error follows a signal is its consequence and not told apart.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)
_AGAIN_S: Final = 0.02
_LOADER: Final = "<frozen importlib._bootstrap_external>"


class Stopped(BaseException):
    """SIGINT or SIGTERM, raised in the main thread so that every `finally` runs."""

    def __init__(self, number: int, dropped: Callable[[int], None]) -> None:
        super().__init__(number)
        self._number, self._dropped = number, dropped

    def __del__(self) -> None:
        """Say that nobody holds it any more."""
        self._dropped(self._number)


class Signals:
    """SIGINT and SIGTERM raise `Stopped` in this context; behind it they kill at once.

    For the process of one command only. What a shell had ignored (SIGINT in background jobs)
    stays ignored.

    Attributes:
        asked: The signal that came, or None.
    """

    def __init__(self) -> None:
        """Leave the signals as they are yet."""
        self.asked: int | None = None
        self._taken: list[int] = []

    def __enter__(self) -> Self:
        """Take the signals over."""
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        for number in _NUMBERS:
            if signal.getsignal(number) is usual[number]:
                self._taken.append(number)
                signal.signal(number, self._stop)
        sys.unraisablehook = _without_stops
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let them kill: the work is over, and what remains is Python's own end."""
        self.release()

    def release(self) -> None:
        """Do what leaving the context does; once is enough."""
        for number in self._taken:
            signal.signal(number, signal.SIG_DFL)
        self._taken = []

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        if _loads_extension(frame):
            self._again(number)
        else:
            raise Stopped(number, self._again)

    def _again(self, number: int) -> None:
        if not self._taken or sys.is_finalizing():
            return
        timer = threading.Timer(_AGAIN_S, self._send, (number,))
        timer.daemon = True
        timer.start()

    def _send(self, number: int) -> None:
        if self._taken:
            # To the process, not from a thread to itself: a main thread that waits must wake up.
            os.kill(os.getpid(), number)


def _loads_extension(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _LOADER and code.co_name in ("create_module", "exec_module"):
            owner = type(frame.f_locals.get("self")).__name__
            if owner == "ExtensionFileLoader":
                return True
        frame = frame.f_back
    return False


def _without_stops(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)
