"""The DAG of a campaign: embed in parts, rounds of selecting and labelling, a model, a report."""

import dataclasses
import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from pipelines.airflow.arguments import (
    KEPT,
    embed_arguments,
    finetune_arguments,
    refresh_arguments,
    report_arguments,
    select_arguments,
)
from pipelines.airflow.program import Program
from svp.errors import InputError
from svp.study.config import STUDY_FILE, read_study_toml

if TYPE_CHECKING:
    from collections.abc import Mapping

Refreshing = Literal["after-rounds", "every-round", "never"]

_START: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Runner(Protocol):
    """How the tasks of a campaign run svp: `Program` or `Pods`."""

    def task(self, arguments: Sequence[str], kept: "Mapping[str, str]", **options: Any) -> Any:
        """Return the operator of one command."""

    def mapped(
        self, arguments: Sequence[Sequence[str]], kept: "Mapping[str, str]", **options: Any
    ) -> Any:
        """Return the operator of a command that is run once per entry of `arguments`."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StudyAssets:
    """What a campaign makes, as assets that other DAGs may be scheduled on.

    Attributes:
        features: Every image has an embedding.
        selections: A round was selected.
        labels: A round was labelled.
        models: The model was trained.
    """

    features: Any
    selections: Any
    labels: Any
    models: Any


def study_assets(dag_id: str) -> StudyAssets:
    """Return the assets of the campaign `dag_id`, for the schedules of other DAGs."""
    from airflow.sdk import Asset

    def asset(kind: str) -> Any:
        return Asset(name=f"{dag_id}.{kind}", uri=f"svp://{dag_id}/{kind}", group="svp")

    return StudyAssets(
        features=asset("features"),
        selections=asset("selections"),
        labels=asset("labels"),
        models=asset("models"),
    )


def build_dag(
    study: str | Path,
    *,
    budget: int,
    rounds: int = 1,
    shards: int = 1,
    refresh: Refreshing = "after-rounds",
    runner: Runner | None = None,
    asker: Program | None = None,
    dag_id: str | None = None,
    schedule: Any = None,
    start_date: datetime.datetime = _START,
    retries: int = 3,
    retry_delay: datetime.timedelta = datetime.timedelta(minutes=5),
    poll_s: float = 60.0,
    labels_within: datetime.timedelta = datetime.timedelta(days=14),
    pool: str = "default_pool",
) -> Any:
    """Build the DAG of a campaign from its study file.

    Every task may be killed and tried again: it goes on where it was, and a selection stays the
    one it was. Tasks of two studies that share a store may run at the same time.

    Args:
        study: The study's folder, under the path that workers see.
        budget: Labels per round.
        rounds: Rounds of selecting and labelling in one run of the DAG.
        shards: Parts of the pool that are embedded side by side.
        refresh: When `svp refresh` is asked, which does something only if the criterion says so.
        runner: How svp is started; default: the program `svp` on the worker.
        asker: How the triggerer starts `svp labels status`; default: the runner if it is a
            `Program`.
        dag_id: Name of the DAG; default: from the study's folder.
        schedule: As Airflow takes it, such as "@daily" or a list of assets.
        start_date: As Airflow takes it.
        retries: Further tries after exit code 75 or a kill; other failures are final.
        retry_delay: Before each of them.
        poll_s: Seconds between two looks at the labels.
        labels_within: How long people may take for a round.
        pool: Airflow's pool for the tasks that may want a GPU: embed, refresh, fine-tune.

    Returns:
        An `airflow.sdk.DAG`.

    Raises:
        InputError: There is no study, its file is wrong, or an argument is out of range.
    """
    from airflow.sdk import DAG

    from pipelines.airflow.operator import GatherOperator
    from pipelines.airflow.sensor import LabelsReadySensor

    if rounds < 1:
        raise InputError(f"rounds must be 1 or more. Got {rounds}. Ask for one.")
    folder = Path(study).absolute()
    if not (folder / STUDY_FILE).is_file():
        raise InputError(
            f"A study must be a folder with {STUDY_FILE}. Got {folder}. "
            "Make one: svp init STUDY --source … --encoder … --store …"
        )
    config = read_study_toml(folder / STUDY_FILE)
    runner = Program() if runner is None else runner
    if asker is None:
        if not isinstance(runner, Program):
            raise InputError(
                "asker must say how the triggerer starts svp where it runs as pods. Got nothing. "
                'Write asker=Program(command=("svp",)).'
            )
        asker = runner
    path = str(folder)
    dag_id = dag_id or "svp_" + re.sub(r"[^A-Za-z0-9_.-]+", "_", folder.name)
    assets = study_assets(dag_id)
    with DAG(
        dag_id,
        description=f"svp: {config.name}",
        schedule=schedule,
        start_date=start_date,
        catchup=False,
        # Rounds of one study follow each other.
        max_active_runs=1,
        tags=["svp"],
        default_args={"retries": retries, "retry_delay": retry_delay},
    ) as dag:
        embed = runner.mapped(
            embed_arguments(path, shards), KEPT["embed"], task_id="embed", pool=pool
        )
        last = GatherOperator(task_id="features", parts=embed.output, outlets=[assets.features])
        embed >> last

        def ask_refresh(task_id: str) -> Any:
            return runner.task(refresh_arguments(path), KEPT["refresh"], task_id=task_id, pool=pool)

        for number in range(rounds):
            select = runner.task(
                select_arguments(path, budget),
                KEPT["select"],
                task_id=f"select_{number}",
                outlets=[assets.selections],
            )
            labels = LabelsReadySensor(
                task_id=f"labels_{number}",
                program=asker.command,
                env=asker.env,
                study=path,
                round_number=_round_of(select.task_id),
                poke_interval=poll_s,
                timeout=labels_within.total_seconds(),
                outlets=[assets.labels],
            )
            last >> select >> labels
            last = labels
            if refresh == "every-round":
                last = ask_refresh(f"refresh_{number}")
                labels >> last
        if refresh == "after-rounds":
            asked = ask_refresh("refresh")
            last >> asked
            last = asked
        finetune = runner.task(
            finetune_arguments(path),
            KEPT["finetune"],
            task_id="finetune",
            pool=pool,
            outlets=[assets.models],
        )
        report = runner.task(report_arguments(path), KEPT["report"], task_id="report")
        last >> finetune >> report
    return dag


def _round_of(task_id: str) -> str:
    # A pod sends no XCom; then the newest round is meant.
    return f"{{{{ (ti.xcom_pull(task_ids='{task_id}') or {{}}).get('round', '') }}}}"
