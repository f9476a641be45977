"""A few threads for a list of work."""

import operator
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


def each(work: Callable[[Any], object], inputs: Iterable[Any], threads: int) -> None:
    """Do work on each input with a few threads, which fetch inputs as they finish.

    One future per thread, not per input: a future costs as much as reading a small chunk.
    """
    left = iter(list(inputs))

    def drain() -> None:
        try:
            for single in left:
                work(single)
        except BaseException:
            for _ in left:  # nothing new is begun once something failed
                pass
            raise

    count = min(threads, operator.length_hint(left))
    if count < 2:
        drain()
        return
    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(drain) for _ in range(count - 1)]
        drain()
        for other in others:
            other.result()


def mapped(work: Callable[[Input], Output], inputs: Sequence[Input], threads: int) -> list[Output]:
    """Return what work gives for each input, in order."""
    if min(threads, len(inputs)) < 2:
        return [work(single) for single in inputs]
    with ThreadPoolExecutor(min(threads, len(inputs))) as pool:
        return list(pool.map(work, inputs))
