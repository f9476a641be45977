"""Parts of a job on the workers of a dask.distributed cluster.

The job travels to every worker once, also to those that join later, as a worker plug-in that
prepares itself when the first part arrives. Parts are submitted only as fast as they are worked
off, so neither the client nor the scheduler holds more than a few of them.

What goes wrong is told apart: a part whose worker vanished is given to another by the scheduler; a
part that met a temporary condition is submitted again, a few times; anything else fails for
everyone, once, and cancels the rest. A stop (Ctrl-C, SIGTERM, an error) withdraws the plug-in,
and the parts that are being worked off end at their next report.
"""

import contextlib
import itertools
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final

import dask
import distributed

from feature_store.errors import (
    FeatureStoreError,
    StorageUnavailableError,
    StoreInputError,
    StoreNotFoundError,
)
from svp.cluster.executor import Job, Part, Result, State
from svp.errors import IdentityError, InputError, SvpError, TemporaryError
from svp.progress import Task

TRIES: Final = 4
_PAUSE_S: Final = 2.0  # before the second try of a part; doubled before each further one
_REPORT_S: Final = 1.0
_SILENCE_S: Final = 60.0  # without any worker before people are told
_CONNECT_S: Final = 30.0
_CORES_A_WORKER: Final = 4
_GPU: Final = "GPU"
_HOST: Final = "127.0.0.1"  # nobody else may hand work to a local cluster


class _Stopped(SvpError):
    """The job was withdrawn while this part was being worked off."""


class JobPlugin(distributed.WorkerPlugin):
    """A job on one worker: prepared when its first part arrives, dropped when it is withdrawn.

    Args:
        name: Of the job's run.
        job: The job.
    """

    def __init__(self, name: str, job: Job[Any, Any, Any]) -> None:
        self.name = name
        self._job = job

    def setup(self, worker: distributed.Worker) -> None:
        """Start without any work: an error here would cost the worker."""
        self._worker = worker
        self._stopped = threading.Event()
        # A worker with several threads gets several parts; they share one encoder.
        self._lock = threading.Lock()
        self._state: tuple[Any, ...] = ()

    def teardown(self, worker: distributed.Worker) -> None:
        """Stop the part in work at its next report, and let go of what the job holds."""
        del worker
        self._stopped.set()
        self._state = ()

    def run(self, number: int, part: Any) -> tuple[int, Any]:
        """Return the units done in one part, and its result."""
        with self._lock:
            if not self._state:
                self._state = (self._job.open(),)
            done, last = 0, time.monotonic()

            def advance(amount: int) -> None:
                nonlocal done, last
                if self._stopped.is_set():
                    raise _Stopped("The job must go on. Got a stop from its client. Run it again.")
                done += amount
                if time.monotonic() - last >= _REPORT_S:
                    last = time.monotonic()
                    self._worker.log_event(self.name, (number, done))

            result = self._job.run(self._state[0], part, advance)
            return done, result


def run_part(name: str, number: int, part: Any) -> tuple[int, Any]:
    """Work off a part on the worker that this runs on; the task that Dask sees.

    Raises:
        SvpError: With a message alone, so that every error can travel to the client.
    """
    plugin = distributed.get_worker().plugins.get(name)
    if not isinstance(plugin, JobPlugin):
        raise TemporaryError(f"A worker must know the job {name}. Got one that does not yet.")
    try:
        return plugin.run(number, part)
    except StorageUnavailableError as error:
        raise TemporaryError(str(error)) from None
    except (StoreNotFoundError, StoreInputError) as error:
        raise InputError(str(error)) from None
    except FeatureStoreError as error:
        raise IdentityError(str(error)) from None


class _Board:
    """Shows the progress of parts as one number that never goes back."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._shown: dict[int, int] = {}

    def show(self, number: int, done: int, note: str) -> None:
        # A part that starts over on another worker reports the same units again.
        more = done - self._shown.get(number, 0)
        if more > 0:
            self._shown[number] = done
            self._task.advance(more, note)


class DaskExecutor:
    """Runs parts on a cluster; see `svp.cluster.executor.Executor`.

    Args:
        client: Of a running cluster. Stays open.
    """

    name = "dask"

    def __init__(self, client: distributed.Client) -> None:
        self._client = client

    def workers(self) -> int:
        """Return how many workers there are now."""
        return len(self._client.scheduler_info()["workers"])

    def run(
        self, job: Job[State, Part, Result], parts: Iterable[Part], task: Task
    ) -> Iterator[tuple[int, Result]]:
        """Yield results as parts end; see `Executor.run`.

        Raises:
            TemporaryError: A part failed `TRIES` times, cost several workers, or the scheduler
                is gone.
        """
        name = f"svp-{uuid.uuid4().hex[:12]}"
        # The caller's own thread is the only one that reads it, so a signal ends any wait.
        news: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        run = _Run(self._client, name, iter(parts), task, news)
        self._announce(JobPlugin(name, job))
        self._client.subscribe_topic(name, lambda event: news.put(("report", *event[1])))
        try:
            yield from run.results()
        finally:
            run.cancel()
            with contextlib.suppress(Exception):  # the cluster may be what failed
                self._client.unsubscribe_topic(name)
                self._client.unregister_worker_plugin(name)

    def _announce(self, plugin: JobPlugin) -> None:
        """Send the job to every worker; one that vanishes meanwhile is no reason to fail."""
        for tried in range(TRIES):
            try:
                self._client.register_plugin(plugin, name=plugin.name)
                return
            except OSError as error:  # what dask makes of a closed connection
                if tried == TRIES - 1 or self._client.status != "running":
                    raise TemporaryError(
                        f"The workers must hear of their job. Got {error}. Run the same command "
                        "again: finished work is kept."
                    ) from error
                time.sleep(_PAUSE_S)


class _Run:
    """The parts of one job in flight."""

    def __init__(
        self,
        client: distributed.Client,
        name: str,
        parts: Iterator[Any],
        task: Task,
        news: "queue.SimpleQueue[tuple[str, int, Any]]",
    ) -> None:
        self._client, self._name, self._news = client, name, news
        self._parts = enumerate(parts)
        self._board = _Board(task)
        self._task = task
        self._flying: dict[int, tuple[Any, distributed.Future[Any]]] = {}
        self._tries: dict[int, int] = {}
        self._later: list[tuple[float, int, Any]] = []  # parts that wait before their next try
        self._seen_s = time.monotonic()

    def results(self) -> Iterator[tuple[int, Any]]:
        while self._fill() or self._later:
            try:
                kind, number, value = self._news.get(timeout=0.5)
            except queue.Empty:
                self._check_alive()
                continue
            if kind == "report":
                self._board.show(number, value, self._note())
            elif number in self._flying and self._flying[number][1] is value:
                part, future = self._flying.pop(number)
                if future.status != "finished":
                    self._again(number, part, self._reason(future))
                    continue
                try:
                    done, result = future.result(timeout=_CONNECT_S)
                except TimeoutError:
                    # Its worker vanished with the result; the scheduler has it done again.
                    self._watch(number, part, future)
                    continue
                except Exception as error:
                    self._again(number, part, error)
                    continue
                self._board.show(number, done, self._note())
                yield number, result

    def cancel(self) -> None:
        with contextlib.suppress(Exception):
            self._client.cancel([future for _, future in self._flying.values()], force=True)

    def _fill(self) -> bool:
        """Keep a few parts per worker in flight; return whether any is."""
        workers = self._client.scheduler_info()["workers"]
        threads = sum(worker["nthreads"] for worker in workers.values())
        # An adaptive cluster grows by what waits for it.
        most = max(8, 2 * threads)
        moment = time.monotonic()
        ready = [entry for entry in self._later if entry[0] <= moment]
        self._later = [entry for entry in self._later if entry[0] > moment]
        for _, number, part in ready:
            self._submit(number, part, workers)
        for number, part in itertools.islice(self._parts, max(0, most - len(self._flying))):
            self._submit(number, part, workers)
        return bool(self._flying)

    def _submit(self, number: int, part: Any, workers: Any) -> None:
        gpus = any(worker["resources"].get(_GPU, 0) >= 1 for worker in workers.values())
        tried = self._tries.get(number, 0)
        future = self._client.submit(
            run_part,
            self._name,
            number,
            part,
            key=f"{self._name}-{number}-{tried}",
            pure=False,
            resources={_GPU: 1} if gpus else None,
        )
        self._watch(number, part, future)

    def _watch(self, number: int, part: Any, future: "distributed.Future[Any]") -> None:
        self._flying[number] = part, future
        future.add_done_callback(lambda done: self._news.put(("done", number, done)))

    def _note(self) -> str:
        return f"{len(self._client.scheduler_info()['workers'])} workers"

    def _reason(self, future: "distributed.Future[Any]") -> BaseException:
        if future.status == "error":
            error: BaseException | None = future.exception(timeout=_CONNECT_S)
            if error is not None:
                return error
        return TemporaryError(
            "The Dask scheduler must stay within reach while parts are worked off. Got a "
            "connection that was lost. Run the same command again: finished work is kept."
        )

    def _again(self, number: int, part: Any, error: BaseException) -> None:
        """Submit a part once more if that may help; else raise what it failed with."""
        tried = self._tries[number] = self._tries.get(number, 0) + 1
        if isinstance(error, distributed.KilledWorker):
            raise TemporaryError(
                f"A part must not cost its workers. Got part {number}, during which worker after "
                "worker was lost; memory is the usual reason. Give workers more of it, or choose "
                "a smaller batch size."
            ) from error
        if not isinstance(error, TemporaryError) or tried >= TRIES:
            raise error
        if self._client.status != "running":
            raise error
        self._later.append((time.monotonic() + _PAUSE_S * 2 ** (tried - 1), number, part))

    def _check_alive(self) -> None:
        if self._client.status not in ("running", "connecting"):
            raise TemporaryError(
                "The Dask scheduler must stay within reach. Got a closed connection. Run the "
                "same command again: finished work is kept."
            )
        if self._client.scheduler_info()["workers"]:
            self._seen_s = time.monotonic()
        elif time.monotonic() - self._seen_s > _SILENCE_S:
            self._seen_s = time.monotonic()
            self._task.advance(0, "waiting for a worker")


@contextlib.contextmanager
def dial(target: "str | distributed.SpecCluster") -> Iterator[distributed.Client]:
    """Connect to a scheduler for the length of a `with` block.

    Raises:
        InputError: `target` is no address.
        TemporaryError: Nobody answers there.
    """
    chosen = (
        {"scheduler_file": target}
        if isinstance(target, str) and target.endswith(".json")
        else {"address": target}
    )
    try:
        client = distributed.Client(**chosen, set_as_default=False, timeout=_CONNECT_S)
    except (OSError, TimeoutError) as error:
        raise TemporaryError(
            f"A Dask scheduler must answer at {target}. Got none in {_CONNECT_S:.0f} s. Start it, "
            "or use --dask local."
        ) from error
    except ValueError as error:
        raise InputError(
            f"--dask must be local, local:N, an address or a scheduler file. Got {target!r} "
            f"({error}). Write tcp://HOST:8786."
        ) from error
    with client:
        yield client


@contextlib.contextmanager
def local_cluster(workers: int | None = None) -> Iterator[distributed.SpecCluster]:
    """Start worker processes on this machine: one per GPU, else one per few cores.

    Args:
        workers: How many; None decides. More than there are GPUs share them.
    """
    import torch

    gpus = torch.cuda.device_count()
    cores = os.cpu_count() or 1
    count = workers or gpus or max(2, cores // _CORES_A_WORKER)
    # Set before a worker starts: its libraries read it when they are loaded.
    threads = str(max(1, cores // count))
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    for name in environment:
        environment[name] = os.environ.get(name, threads)
    options = {
        "nthreads": 1,
        "host": _HOST,
        "memory_limit": 0,  # a part's memory is bounded by its job, not by its share of cores
        "silence_logs": logging.ERROR,
        "resources": {_GPU: 1} if gpus else {},
    }
    specs = {
        number: {
            "cls": distributed.Nanny,
            "options": {
                **options,
                "env": {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {},
            },
        }
        for number in range(count)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {
            "host": _HOST,
            "port": 0,
            "dashboard": False,
            "dashboard_address": f"{_HOST}:0",
        },
    }
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        distributed.SpecCluster(
            workers=specs, scheduler=scheduler, silence_logs=logging.ERROR
        ) as cluster,
    ):
        yield cluster
