"""The few things used last, of many that are too large or too many to keep open."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Opens a thing when it is asked for and forgets the one that was not for the longest time.

    Safe to use from several threads; things are opened one at a time, so that no more than the
    limit and one is ever held.

    Args:
        make: Opens a thing.
        limit: Weight to keep; the thing asked for last stays, whatever it weighs.
        weigh: The weight of a thing; default 1 each.
    """

    def __init__(
        self,
        make: Callable[[Key], Value],
        limit: int,
        weigh: Callable[[Value], int] = lambda value: 1,
    ) -> None:
        self._make, self._limit, self._weigh = make, limit, weigh
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value:
        """Return the thing for `key`; what opening it raises is raised here."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            while self._kept and self._weight >= self._limit:
                self._weight -= self._weigh(self._kept.popitem(last=False)[1])
            value = self._kept[key] = self._make(key)
            self._weight += self._weigh(value)
            return value
