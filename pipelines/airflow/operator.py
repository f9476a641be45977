"""Operators: an svp command as a process of its own, and what its parts did together."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import Asset, BaseOperator

from pipelines.airflow.outcome import check_exit, small_result

# Airflow's own settings, secrets among them, and what would mix its packages into svp's.
_PRIVATE = ("AIRFLOW__", "PYTHONPATH", "PYTHONHOME")


def process_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an svp process: this one's without Airflow's, and `more`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    return {**own, **more}


class SvpOperator(BaseOperator):
    """Runs one svp command; its result file's path and a few numbers go to XCom.

    Exit code 75 and a killed process are tried again, everything else fails once. A stop of the
    task is passed on as SIGTERM, upon which svp finishes its chunk and ends with 143.

    Args:
        program: How svp is started, such as `("/opt/svp/bin/svp",)`.
        arguments: Behind it; rendered, so they may hold templates.
        env: Variables of the process, beside those of the worker that are not Airflow's.
        kept: What to take over from the result, see `small_result`.
    """

    template_fields: Sequence[str] = ("arguments", "env")

    def __init__(
        self,
        *,
        program: Sequence[str],
        arguments: Sequence[str],
        env: Mapping[str, str] | None = None,
        kept: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.program = list(program)
        self.arguments = arguments
        self.env = dict(env or {})
        self.kept = dict(kept or {})
        self._process: SubprocessHook | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Run the command and return a small description of its result."""
        arguments = list(self.arguments)
        path = Path(arguments[arguments.index("--result-file") + 1])
        path.unlink(missing_ok=True)  # an earlier try's is not this one's
        self._process = SubprocessHook()
        done = self._process.run_command(
            [*self.program, *arguments], env=process_environment(self.env), cwd=str(Path.cwd())
        )
        check_exit(arguments[0], done.exit_code, done.output)
        found = small_result(path, self.kept)
        publish(context, self.outlets, found)
        return found

    def on_kill(self) -> None:
        """Stop the process; it ends by itself at the next chunk."""
        if self._process is not None:
            self._process.send_sigterm()


class GatherOperator(BaseOperator):
    """Publishes an asset once all parts of the mapped task before it are done.

    Args:
        parts: Their results; an `XComArg`.
    """

    template_fields: Sequence[str] = ("parts",)

    def __init__(self, *, parts: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts

    def execute(self, context: Any) -> dict[str, Any]:
        """Return the sum of what the parts did."""
        total = gathered(part for part in (self.parts or ()) if part)
        publish(context, self.outlets, total)
        return total


def gathered(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return results of several parts as one: counts added, names as the last part has them."""
    total: dict[str, Any] = {"parts": 0}
    for part in parts:
        total["parts"] += 1
        for name, value in part.items():
            if name == "result_file":
                continue
            counts = isinstance(value, int) and not isinstance(value, bool)
            total[name] = total.get(name, 0) + value if counts else value
    return total


def publish(context: Any, outlets: Sequence[Any], extra: Mapping[str, Any]) -> None:
    """Attach what is known of a result to the events of the task's assets."""
    for outlet in outlets:
        if isinstance(outlet, Asset):
            context["outlet_events"][outlet].extra = dict(extra)
