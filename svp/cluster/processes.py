"""Parts of a job in several processes of this machine, without a cluster."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import signal
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


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that the interrupt key does not reach: this one ends them.

    The key goes to every process of the terminal, and each would print a traceback of its own.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        others = set(multiprocessing.active_children())
        finished = False
        try:
            with _interrupts_held():
                waiting = [pool.submit(_run, number, part) for number, part in enumerate(parts)]
            for future in concurrent.futures.as_completed(waiting):
                number, done, result = future.result()
                task.advance(done)
                yield number, result
            finished = True
        except concurrent.futures.process.BrokenProcessPool as error:
            raise TemporaryError(
                "A worker process must live until its part is done. Got one that ended early; "
                "memory is the usual reason. Run the same command again with fewer --jobs."
            ) from error
        finally:
            if not finished:  # nobody takes what they compute; a kill costs no more than that
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
