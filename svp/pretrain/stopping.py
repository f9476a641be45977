"""Stopping between two steps: a signal waits until the state is whole and saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final, Self

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Holds back SIGTERM and SIGINT until `leave`; a second signal acts at once.

    Signals that are ignored stay so, and outside the main thread nothing is held back.

    Attributes:
        asked: Whether a signal came.
    """

    def __init__(self) -> None:
        """Hold nothing back yet."""
        self.asked = False
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None: a handler that Python did not install and could not give back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back; one that came and was not acted on acts now."""
        self._restore()
        if kind is None and self._number is not None:
            signal.raise_signal(self._number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.asked, self._number = True, number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def leave(self) -> None:
        """Let the signal act, as it would have when it came."""
        number, self._number = self._number, None
        self._restore()
        if number is not None:
            signal.raise_signal(number)
