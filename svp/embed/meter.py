"""Where the time of an embedding run goes: the steps that kept the encoder from finishing.

Each second of a replica belongs to one step at most. `decode`: the encoder had nothing to do
because images were not there yet. `copy`: images were on their way to the device and it had
nothing else to do. `forward`: it computed. `write`: it had to wait until the disk took the chunk
before. What overlaps with the forward pass is not counted, because it costs nothing. The rest is
the loop's own. On a CPU decoding threads and the forward pass share the cores, so a forward pass
is slower while images are decoded; that time is counted as forward.
"""

import dataclasses
import math
import threading
import time
from typing import Final, Literal

Step = Literal["decode", "copy", "forward", "write"]

_RECENT_S: Final = 20.0  # how far back "now" reaches: an exponential window


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Share of the time that went to each step, in [0, 1]; together at most 1.

    Attributes:
        decode: Waiting for images.
        copy: Waiting for copies to and from the device.
        forward: The forward pass.
        write: Waiting for the writing of embeddings.
    """

    decode: float = 0.0
    copy: float = 0.0
    forward: float = 0.0
    write: float = 0.0

    @property
    def bottleneck(self) -> Step:
        """The step that most of the time went to; of equals the later one."""
        steps: tuple[Step, ...] = ("write", "forward", "copy", "decode")
        return max(steps, key=lambda step: float(getattr(self, step)))

    def __str__(self) -> str:
        return (
            f"bound by {self.bottleneck} (decode {self.decode:.0%}, copy {self.copy:.0%}, "
            f"forward {self.forward:.0%}, write {self.write:.0%})"
        )


@dataclasses.dataclass(slots=True)
class Spent:
    """Seconds of one replica by step."""

    decode: float = 0.0
    copy: float = 0.0
    forward: float = 0.0
    write: float = 0.0


class Meter:
    """Adds up the seconds of all replicas; safe to use from several threads."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._lock = threading.Lock()
        self._began = self._last = time.perf_counter()
        self._total, self._recent, self._recent_s = Spent(), Spent(), 0.0

    def add(self, spent: Spent) -> Shares:
        """Count what one step took; return the shares of the last `_RECENT_S` seconds or so."""
        with self._lock:
            now = time.perf_counter()
            passed, self._last = now - self._last, now
            fade = math.exp(-passed / _RECENT_S)
            self._recent_s = self._recent_s * fade + passed
            for field in dataclasses.fields(Spent):
                seconds = getattr(spent, field.name)
                setattr(self._total, field.name, getattr(self._total, field.name) + seconds)
                recent = getattr(self._recent, field.name) * fade + seconds
                setattr(self._recent, field.name, recent)
            return self._shares(self._recent, self._recent_s)

    def shares(self) -> Shares:
        """Return the shares of the whole run up to now."""
        with self._lock:
            return self._shares(self._total, time.perf_counter() - self._began)

    def _shares(self, spent: Spent, elapsed_s: float) -> Shares:
        whole = max(elapsed_s * self._replicas, sum(dataclasses.astuple(spent)), 1e-9)
        return Shares(
            decode=spent.decode / whole,
            copy=spent.copy / whole,
            forward=spent.forward / whole,
            write=spent.write / whole,
        )
