"""What the end of an svp process means to Airflow: done, try again, or fail for good."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from pipelines.stages import worth_another_try


def check_exit(command: str, exit_code: int | None, said: str) -> None:
    """Return after exit code 0.

    Args:
        command: Which command, for the message.
        exit_code: Its exit code; None where nobody knows it.
        said: The last line it wrote.

    Raises:
        AirflowException: Another try may help: exit code 75, or the process was killed.
        AirflowFailException: It cannot; Airflow then tries no more, whatever `retries` says.
    """
    if exit_code == 0:
        return
    message = f"svp {command} ended with exit code {exit_code}. {said}"
    if exit_code is None or worth_another_try(exit_code):
        raise AirflowException(f"{message} Trying again may help.")
    raise AirflowFailException(f"{message} Trying again would not help.")


def small_result(path: Path, kept: Mapping[str, str]) -> dict[str, Any]:
    """Return what an XCom should carry of a result: where it is, and a few values of it.

    Args:
        path: What `--result-file` wrote; a worker that does not reach it sends the path alone.
        kept: Dotted path in the result by name; what is not there is left out.
    """
    found: dict[str, Any] = {"result_file": str(path)}
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return found
    for name, dotted in kept.items():
        value = result
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found
