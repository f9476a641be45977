"""The one interface behind which parts of a job are run, and the executor of one process.

A job says how a worker prepares itself once and how it then works off one part after the other.
It knows nothing of Dask, and an executor knows nothing of embeddings: so every job runs in one
process too, which is how its tests and `svp replay` run it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from svp.progress import Task

Advance = Callable[[int], None]
State = TypeVar("State")
Part = TypeVar("Part")
Result = TypeVar("Result")
Part_contra = TypeVar("Part_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Job(Protocol[State, Part_contra, Result_co]):
    """Work that falls into parts; can be pickled.

    A part may be run more than once, by different workers, even at the same time: its result must
    depend on the job and the part alone, and what it writes must be safe to write twice.
    """

    def open(self) -> State:
        """Prepare a worker, once per process: load weights, open the store."""

    def run(self, state: State, part: Part_contra, advance: Advance) -> Result_co:
        """Return the result of one part.

        Args:
            state: What `open` returned in this process.
            part: The part.
            advance: Called with the units finished since the last call. May raise to stop.
        """


class Executor(Protocol):
    """Runs the parts of a job somewhere."""

    @property
    def name(self) -> str:
        """What a receipt says, such as `dask`."""

    def run(
        self, job: Job[State, Part, Result], parts: Iterable[Part], task: Task
    ) -> Iterator[tuple[int, Result]]:
        """Yield (number of the part, its result) as parts end, in any order.

        Args:
            job: The work.
            parts: What to work off; read only as fast as there are workers to take them.
            task: Told of the units that parts report.

        Raises:
            SvpError: What a part raised, of its own class.
        """


class InProcess:
    """Runs parts one after the other, here."""

    name = "in-process"

    def run(
        self, job: Job[State, Part, Result], parts: Iterable[Part], task: Task
    ) -> Iterator[tuple[int, Result]]:
        """Yield results in the order of the parts; see `Executor.run`."""
        state: Any = None
        for number, part in enumerate(parts):
            state = job.open() if number == 0 else state
            yield number, job.run(state, part, task.advance)
