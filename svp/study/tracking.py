"""Where numbers go while they are made: JSON lines always, and trackers that are asked for.

A tracker is never a reason to fail: the first error of each is logged as one warning, and then it
is left alone. A run that is continued, by name, stays one run.
"""

import dataclasses
import hashlib
import importlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from svp.errors import InputError
from svp.provenance import now

LOG: Final = logging.getLogger(__name__)
LINES: Final = "metrics.jsonl"
_MODULES: Final[Mapping[str, str]] = {
    "tensorboard": "torch.utils.tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
}
TRACKERS: Final = tuple(_MODULES)


class Tracker(Protocol):
    """Takes the numbers of runs."""

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Take numbers of a run at a step, such as the labels so far."""

    def close(self) -> None:
        """Write what is held back."""


class JsonLines:
    """Appends one line per call to a file: `{"at", "run", "step", …}`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line; numbers that do not exist are null."""
        known = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"at": now(), "run": run, "step": step, **known})
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def close(self) -> None:
        """Do nothing: every line is written at once."""


class TensorBoard:
    """Scalars in `tensorboard/RUN` of a folder."""

    def __init__(self, module: Any, folder: Path) -> None:
        self._module, self._folder = module, folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars."""
        if run not in self._writers:
            self._writers[run] = self._module.SummaryWriter(str(self._folder / run))
        for name, value in metrics.items():
            self._writers[run].add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is held back."""
        for writer in self._writers.values():
            writer.close()


class MLflow:
    """One MLflow run per run; where they go is MLflow's own setting (MLFLOW_TRACKING_URI)."""

    def __init__(self, module: Any, folder: Path) -> None:
        # A server that is gone must not hold up a run for MLflow's own four minutes a number.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._metric = module.entities.Metric
        self._client = module.MlflowClient()
        name = f"svp {_title(folder)}"
        experiment = self._client.get_experiment_by_name(name)
        self._experiment = (
            experiment.experiment_id
            if experiment is not None
            else self._client.create_experiment(name)
        )
        self._ids: dict[str, str] = {}

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics, all in one request."""
        if run not in self._ids:
            self._ids[run] = self._found(run) or str(
                self._client.create_run(self._experiment, run_name=run).info.run_id
            )
        at = int(time.time() * 1000)
        self._client.log_batch(
            self._ids[run],
            metrics=[self._metric(name, value, at, step) for name, value in metrics.items()],
        )

    def _found(self, run: str) -> str | None:
        named = self._client.search_runs(
            [self._experiment], filter_string=f"attributes.run_name = '{run}'", max_results=1
        )
        return str(named[0].info.run_id) if named else None

    def close(self) -> None:
        """End the runs."""
        for identifier in self._ids.values():
            self._client.set_terminated(identifier)


class WandB:
    """One W&B run per run; where they go is W&B's own setting (WANDB_MODE, WANDB_PROJECT)."""

    def __init__(self, module: Any, folder: Path) -> None:
        self._module, self._folder = module, folder
        self._run: Any = None
        self._name = ""

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers; the runs come one after the other."""
        if run != self._name or self._run is None:
            self.close()
            title = _title(self._folder)
            self._run = self._module.init(
                name=run,
                group=title,
                id=hashlib.sha256(f"{self._folder.resolve()}/{run}".encode()).hexdigest()[:16],
                resume="allow",
                dir=str(self._folder),
                # Our own output stays ours, and nobody waits for a server or a key.
                settings=self._module.Settings(
                    silent=True, console="off", init_timeout=30, login_timeout=30
                ),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
            self._name = run
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()


def _title(folder: Path) -> str:
    """Return a name for a folder that says which study it is of."""
    parts = folder.resolve().parts
    return "/".join(parts[-3:]) if "simulation" in parts[-2:] else parts[-1]


_CLASSES: Final[Mapping[str, Callable[[Any, Path], Tracker]]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


@dataclasses.dataclass(slots=True)
class Tracking:
    """Several trackers as one that never raises."""

    trackers: dict[str, Tracker]

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Hand numbers to every tracker that still works."""
        for name in list(self.trackers):
            self._guarded(name, lambda tracker: tracker.log(run, step, metrics))

    def close(self) -> None:
        """Close every tracker that still works."""
        for name in list(self.trackers):
            self._guarded(name, lambda tracker: tracker.close())

    def _guarded(self, name: str, call: Callable[[Tracker], None]) -> None:
        try:
            call(self.trackers[name])
        except Exception as error:
            del self.trackers[name]
            LOG.warning("%s no longer receives numbers: %s: %s", name, type(error).__name__, error)


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that trackers have a known name.

    Raises:
        InputError: One has not.
    """
    unknown = [name for name in names if name not in _MODULES]
    if unknown:
        raise InputError(
            f"A tracker must be one of {', '.join(TRACKERS)}. Got {', '.join(unknown)}. "
            "Choose one of them."
        )


def open_tracking(folder: Path, names: Sequence[str] = ()) -> Tracking:
    """Open the trackers of a folder: `metrics.jsonl`, and those named. Close it, or use `with`.

    Args:
        folder: Of the study, the simulation or the encoder.
        names: Of `TRACKERS`. One that is not installed or cannot start is warned of and left out.

    Raises:
        InputError: A name is unknown.
    """
    check_trackers(names)
    trackers: dict[str, Tracker] = {}
    try:
        trackers["json lines"] = JsonLines(folder / LINES)
    except OSError as error:
        LOG.warning("%s cannot be written: %s", folder / LINES, error)
    for name in dict.fromkeys(names):
        try:
            trackers[name] = _CLASSES[name](importlib.import_module(_MODULES[name]), folder)
        except ImportError:
            LOG.warning('%s is not installed: pip install "svp[%s]"', name, name)
        except Exception as error:
            LOG.warning("%s cannot start: %s: %s", name, type(error).__name__, error)
    return Tracking(trackers)
