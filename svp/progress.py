"""Progress of long work: a live bar on a terminal, plain lines everywhere else.

Logs of batch jobs must neither flood nor fall silent, so off a terminal a line with rate and
estimated time left is written every `interval_s` seconds, and once at the end of a task that took
a second or more.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol, TextIO

# Takes the numbers of training: a step or an epoch, and what was seen there by name.
Watch = Callable[[int, Mapping[str, float]], None]


class Task(Protocol):
    """One piece of work whose progress is reported."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Say that `amount` more units are done; `note` replaces the text behind the numbers."""


class Progress(Protocol):
    """Where long work reports to."""

    def task(
        self, label: str, total: int | None, unit: str = "items", done: int = 0
    ) -> contextlib.AbstractContextManager[Task]:
        """Open a task of `total` units, `done` of which were finished by an earlier run."""

    def say(self, message: str) -> None:
        """Write one line that is not the progress of a task."""


class _Nothing:
    def advance(self, amount: int = 1, note: str = "") -> None:
        del amount, note


class Silent:
    """Reports nothing; the default of every library function."""

    @contextlib.contextmanager
    def task(
        self, label: str, total: int | None, unit: str = "items", done: int = 0
    ) -> Iterator[Task]:
        """Open a task that is never shown."""
        del label, total, unit, done
        yield _Nothing()

    def say(self, message: str) -> None:
        """Drop the line."""
        del message


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


_NOTABLE_S: Final = 1.0


class _LineTask:
    def __init__(
        self, label: str, total: int | None, unit: str, done: int, stream: TextIO, interval_s: float
    ) -> None:
        self._label, self._total, self._unit, self._stream = label, total, unit, stream
        self._done = self._start_done = done
        self._interval_s = interval_s
        self._start = self._last = time.monotonic()
        self._note = ""
        self._written = False

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        self._note = note or self._note
        moment = time.monotonic()
        if moment - self._last >= self._interval_s:
            self._last = moment
            self.write()

    def write(self, *, final: bool = False) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        # The result says what was done; a line for each instant only hides the others.
        if final and not self._written and elapsed < min(_NOTABLE_S, self._interval_s):
            return
        self._written = True
        rate = (self._done - self._start_done) / elapsed
        parts = [f"{self._label}: {self._done:,}"]
        if self._total is not None:
            parts[0] += f"/{self._total:,}"
        parts[0] += f" {self._unit}"
        if rate > 0:
            parts.append(f"{rate:,.1f} {self._unit}/s")
        if final:
            parts.append(f"took {_duration(elapsed)}")
        elif self._total is not None and rate > 0:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        if self._note:
            parts.append(self._note)
        print(", ".join(parts), file=self._stream, flush=True)


class Lines:
    """Plain lines for logs."""

    def __init__(self, stream: TextIO | None = None, interval_s: float = 10.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = interval_s

    @contextlib.contextmanager
    def task(
        self, label: str, total: int | None, unit: str = "items", done: int = 0
    ) -> Iterator[Task]:
        """Open a task that writes a line every `interval_s` seconds and, if long, at its end."""
        task = _LineTask(label, total, unit, done, self._stream, self._interval_s)
        yield task
        task.write(final=True)

    def say(self, message: str) -> None:
        """Write the line."""
        print(message, file=self._stream, flush=True)


class Bars:
    """A live bar on a terminal, by rich."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console

        self._console = Console(file=stream if stream is not None else sys.stderr)

    @contextlib.contextmanager
    def task(
        self, label: str, total: int | None, unit: str = "items", done: int = 0
    ) -> Iterator[Task]:
        """Open a task with a bar, counts, rate and time left."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        with bars:
            handle = bars.add_task(label, total=total, completed=done, unit=unit, rate="", note="")
            began = time.monotonic()
            finished, said = 0, ""

            class _BarTask:
                def advance(self, amount: int = 1, note: str = "") -> None:
                    nonlocal finished, said
                    finished, said = finished + amount, note or said
                    rate = f"{finished / max(time.monotonic() - began, 1e-9):,.1f} {unit}/s"
                    bars.update(handle, advance=amount, rate=rate, note=said)

            yield _BarTask()

    def say(self, message: str) -> None:
        """Write the line above the bars."""
        self._console.print(message, highlight=False, markup=False)


def automatic(stream: TextIO | None = None) -> Progress:
    """Return bars on a terminal and lines elsewhere, for `stream` (default: stderr)."""
    stream = stream if stream is not None else sys.stderr
    return Bars(stream) if stream.isatty() else Lines(stream)
