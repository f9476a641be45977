"""A study as an Airflow DAG: svp runs in its own environment or image, never inside Airflow's.

A DAG file holds two lines:

    from pipelines.airflow import Program, build_dag

    dag = build_dag("study", budget=200, rounds=3, runner=Program(command=("svp",)))

Nothing here imports Airflow before `build_dag` is called, and nothing imports torch. Airflow's
environment needs this package without its dependencies: `pip install --no-deps svp`.
"""

from pipelines.airflow.campaign import StudyAssets, build_dag, study_assets
from pipelines.airflow.pods import Pods
from pipelines.airflow.program import Program

__all__ = ["Pods", "Program", "StudyAssets", "build_dag", "study_assets"]
