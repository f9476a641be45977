"""Command lines of a study's stages, as Airflow's tasks run them. No Airflow in here."""

from collections.abc import Mapping
from typing import Final

from svp.errors import InputError

# Rendered by Airflow for every task: one call, one name, however often it is tried.
_CALL: Final = "{{ run_id }}/{{ ti.task_id }}"
_FILE: Final = "{{ run_id }}/{{ ti.task_id }}.{{ ti.map_index }}.json"

#: What of a command's result is worth an XCom, by the name it gets there.
KEPT: Final[Mapping[str, Mapping[str, str]]] = {
    "embed": {
        "encoder_id": "result.encoder_id",
        "pool_id": "result.pool_id",
        "embedded": "result.embedded",
        "reused": "result.reused",
        "failed": "result.failed_items",
    },
    "select": {"round": "round", "receipt": "receipt"},
    "refresh": {"refreshed": "result.refreshed", "encoder_id": "result.refresh.encoder_id"},
    "finetune": {"output": "output", "accuracy": "metrics.evaluation.accuracy"},
    "report": {"report": "report"},
}


def embed_arguments(study: str, shards: int) -> list[list[str]]:
    """Return one command per part of the pool."""
    if shards < 1:
        raise InputError(f"shards must be 1 or more. Got {shards}. Write 1 for no parts.")
    return [_with_result("embed", study, "--shard", f"{index}/{shards}") for index in range(shards)]


def select_arguments(study: str, budget: int) -> list[str]:
    """Return the command that selects a round; tried again it returns the same round."""
    if budget < 1:
        raise InputError(f"budget must be 1 or more. Got {budget}. Ask for more images.")
    return _with_result("select", study, "--budget", str(budget), "--request", _CALL)


def refresh_arguments(study: str) -> list[str]:
    """Return the command that refreshes the features if the criterion asks for it."""
    return _with_result("refresh", study)


def finetune_arguments(study: str) -> list[str]:
    """Return the command that trains the model; the state of older labels is discarded.

    A run of the same labels continues: `--restart` discards what belongs to others only.
    """
    return _with_result("finetune", study, "--restart")


def report_arguments(study: str) -> list[str]:
    """Return the command that writes the report."""
    return _with_result("report", study)


def status_arguments(study: str, round_number: str = "") -> list[str]:
    """Return the command that says whether a round is labelled; "" asks about the newest."""
    chosen = ["--round", round_number] if round_number else []
    return ["labels", "status", study, *chosen, "--json"]


def _with_result(command: str, study: str, *options: str) -> list[str]:
    # A file and not stdout: Airflow mixes both streams of a process.
    return [command, study, *options, "--result-file", f"{study}/airflow/{_FILE}"]
