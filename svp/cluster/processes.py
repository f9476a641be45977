"""Parts of a job in several processes of this machine, without a cluster."""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
from collections.abc import Iterable, Iterator
from typing import Any

from svp.cluster.executor import Job, Part, Result, State
from svp.errors import InputError, TemporaryError
from svp.progress import Task

# What `_open` prepared in this worker process; a process runs parts of one job only.
_opened: list[tuple[Job[Any, Any, Any], Any]] = []


def _open(job: Job[Any, Any, Any], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    _opened[:] = [(job, job.open())]


def _run(number: int, part: Any) -> tuple[int, int, Any]:
    ((job, state),) = _opened
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount

    result = job.run(state, part, advance)
    return number, done, result


class Processes:
    """Runs parts in worker processes that are started for them; see `Executor`.

    Args:
        count: How many.
        threads: Threads of each.
    """

    name = "processes"

    def __init__(self, count: int, *, threads: int = 1) -> None:
        if count < 1 or threads < 1:
            raise InputError(
                f"Processes and threads must be at least 1. Got {count}, {threads}. Correct them."
            )
        self._count, self._threads = count, threads

    def run(
        self, job: Job[State, Part, Result], parts: Iterable[Part], task: Task
    ) -> Iterator[tuple[int, Result]]:
        """Yield results as parts end; see `Executor.run`.

        Raises:
            TemporaryError: A worker process was killed; memory is the usual reason.
        """
        # Not forked: torch's threads would not survive it.
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(
            self._count, mp_context=context, initializer=_open, initargs=(job, self._threads)
        )
        try:
            waiting = [pool.submit(_run, number, part) for number, part in enumerate(parts)]
            for future in concurrent.futures.as_completed(waiting):
                number, done, result = future.result()
                task.advance(done)
                yield number, result
        except concurrent.futures.process.BrokenProcessPool as error:
            raise TemporaryError(
                "A worker process must live until its part is done. Got one that ended early; "
                "memory is the usual reason. Run the same command again with fewer --jobs."
            ) from error
        finally:
            # After a stop the parts in work are finished and dropped; the others never start.
            pool.shutdown(wait=True, cancel_futures=True)
