"""The Airflow DAG of a study: its command lines here, the whole of it on a real Airflow.

Tests with Airflow are slow and need its own environment: `make test-airflow` makes one and names
its Python in SVP_AIRFLOW_PYTHON.
"""

import csv
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.airflow import Pods, Program
from pipelines.airflow.arguments import (
    embed_arguments,
    finetune_arguments,
    select_arguments,
    status_arguments,
)
from pipelines.stages import worth_another_try
from svp.demo import write_digits
from svp.errors import InputError

ROOT = Path(__file__).parent.parent
AIRFLOW = os.environ.get("SVP_AIRFLOW_PYTHON", "")
needs_airflow = [
    pytest.mark.slow,
    pytest.mark.skipif(not AIRFLOW, reason="SVP_AIRFLOW_PYTHON names no Python: make test-airflow"),
    pytest.mark.timeout(3600),
]


def test_the_package_needs_neither_airflow_nor_torch():
    code = "import sys, pipelines.airflow as p; p.Program(); p.Pods(image='svp'); " \
        "sys.exit(any(name in sys.modules for name in ('airflow', 'torch', 'numpy')))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_embedding_is_one_command_per_part():
    first, second = embed_arguments("study", 2)
    assert first[:4] == ["embed", "study", "--shard", "0/2"]
    assert second[3] == "1/2"
    # Parts must not write over each other's results.
    assert first[-2:] == [
        "--result-file",
        "study/airflow/{{ run_id }}/{{ ti.task_id }}.{{ ti.map_index }}.json",
    ]
    with pytest.raises(InputError, match="shards"):
        embed_arguments("study", 0)


def test_commands_may_be_run_twice():
    select = select_arguments("study", 20)
    assert select[select.index("--request") + 1] == "{{ run_id }}/{{ ti.task_id }}"
    assert "--restart" in finetune_arguments("study")
    with pytest.raises(InputError, match="budget"):
        select_arguments("study", 0)


def test_the_question_about_labels_names_its_round():
    assert status_arguments("study", "3") == ["labels", "status", "study", "--round", "3", "--json"]
    assert "--round" not in status_arguments("study")


@pytest.mark.parametrize(
    ("code", "again"),
    [(75, True), (137, True), (143, True), (130, True), (-9, True), (-15, True),
     (1, False), (2, False), (3, False), (4, False), (5, False), (-11, False), (139, False)],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again(code, again):
    assert worth_another_try(code) is again


def test_a_program_is_words():
    with pytest.raises(InputError, match="words"):
        Program(command="svp")
    with pytest.raises(InputError, match="words"):
        Program(command=())


# --- with a real Airflow ---------------------------------------------------------------------

KILLER = """
import os, subprocess, sys, time
from pathlib import Path
# Starts svp; the first run of each of these commands is killed while it works.
python, study = {python!r}, Path({study!r})
with open({log!r}, "a") as log:
    log.write(sys.argv[1] + "\\n")
signs = {{"embed": study.parent / "store" / "store.json", "finetune": study / "model"}}
process = subprocess.Popen([python, "-m", "svp", *sys.argv[1:]])
mark = Path({log!r} + "." + sys.argv[1])
if {kill!r} and sys.argv[1] in signs and not mark.exists():
    mark.touch()
    while process.poll() is None and not signs[sys.argv[1]].exists():
        time.sleep(0.01)
    process.kill()
code = process.wait()
if code < 0:
    os.kill(os.getpid(), -code)  # die as svp died
sys.exit(code)
"""

DAG = """
import datetime
from pipelines.airflow import Program, build_dag
dag = build_dag(
    {study!r}, dag_id="study", budget=8, rounds=2, shards=2, poll_s=0.5,
    retry_delay=datetime.timedelta(seconds=1),
    runner=Program(command=({python!r}, {program!r}), env={env!r}),
)
"""


def svp(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "svp", *map(str, words)],
        env=environment, check=True, capture_output=True, text=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("airflow")
    write_digits(root / "photos")
    for split, kept in {"train": 8, "test": 2}.items():
        for label in (root / "photos" / split).iterdir():
            for path in sorted(label.iterdir())[kept:]:
                path.unlink()
    svp("pretrain", "--source", "photos", "--output", "encoder", "--image-size", "8",
        "--epochs", "1", "--arch", "resnet8", cwd=root)  # fmt: skip
    return root


class Campaign:
    """A study, an Airflow of its own, and somebody who labels."""

    def __init__(self, root, name, *, kill=False):
        self.study, self.home, self.calls = root / name, root / f"{name}-home", root / f"{name}-log"
        svp("init", self.study, "--source", root / "photos", "--encoder", root / "encoder",
            "--store", root / "store")  # fmt: skip
        path = self.study / "study.toml"
        short = '[finetune]\nmethod = "supervised"\nsteps = 3\nbatch_size = 8\n'
        path.write_text(path.read_text().replace("[finetune]\n", short))
        program = root / f"{name}-svp.py"
        program.write_text(
            KILLER.format(
                python=sys.executable, study=str(self.study), log=str(self.calls), kill=kill
            )
        )
        dags = self.home / "dags"
        dags.mkdir(parents=True)
        env = {"PYTHONPATH": str(ROOT), "SVP_CACHE_DIR": os.environ["SVP_CACHE_DIR"]}
        (dags / "campaign.py").write_text(
            DAG.format(study=str(self.study), python=sys.executable, program=str(program), env=env)
        )
        self.environment = {
            **os.environ,
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "PYTHONPATH": str(ROOT),
        }
        self.log = self.home / "test.log"

    def start(self):
        self.airflow("db", "migrate").wait()
        self.process = self.airflow("dags", "test", "study")
        self.labeller = threading.Thread(target=self.label, daemon=True)
        self.labeller.start()
        return self

    def airflow(self, *words):
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [AIRFLOW, "-m", "airflow", *words],
                env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def label(self):
        for number in range(2):
            # Only once the sensor has seen that labels are missing.
            while f"Round {number}: 0 of 8 images are labelled" not in self.text():
                if self.process.poll() is not None:
                    return
                time.sleep(0.2)
            folder = self.study / "rounds" / f"{number:03d}"
            with (folder / "selection.csv").open(newline="") as stream:
                ids = [row["id"] for row in csv.DictReader(stream)]
            answers = self.home / f"{number}.csv"
            answers.write_text("id,label\n" + "".join(f"{i},{i.split('/')[1]}\n" for i in ids))
            svp("labels", "import", self.study, answers)

    def text(self):
        return self.log.read_text(errors="replace")

    def finish(self):
        return self.process.wait()

    def commands(self):
        return self.calls.read_text().split()

    def made(self):
        rounds = [
            (self.study / "rounds" / number / "selection.csv").read_bytes()
            for number in ("000", "001")
        ]
        return [*rounds, (self.study / "model" / "model.safetensors").read_bytes()]


class TestOnAirflow:
    pytestmark = needs_airflow

    def test_a_campaign_runs_to_a_model_and_kills_change_nothing(self, material):
        # Two studies on one store, at the same time; one of them is disturbed.
        calm, killed = (
            Campaign(material, "calm").start(),
            Campaign(material, "killed", kill=True).start(),
        )
        assert calm.finish() == 0, calm.text()[-6000:]
        assert killed.finish() == 0, killed.text()[-6000:]
        assert calm.commands().count("finetune") == 1
        assert killed.commands().count("finetune") == 2
        assert killed.commands().count("embed") == 3
        assert "ended with exit code -9" in killed.text()
        assert killed.made() == calm.made()
        assert (calm.study / "report.html").is_file()
        # What tasks tell each other is small and points at files.
        (result,) = (calm.study / "airflow").glob("*/finetune.*.json")
        assert json.loads(result.read_text())["schema"] == "svp.finetune/1"

    def test_a_wrong_configuration_fails_once(self, material):
        campaign = Campaign(material, "wrong")
        path = campaign.study / "study.toml"
        path.write_text(path.read_text().replace("../encoder", "../nowhere"))
        assert campaign.start().finish() != 0
        # One try for each of the two parts, though three more were allowed.
        assert campaign.commands() == ["embed", "embed"]
        assert "ended with exit code 3" in campaign.text()
        assert "Trying again would not help" in campaign.text()

    def test_pods_run_the_image_and_their_exit_codes_decide(self, material):
        code = """
import types, sys
try:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
except ImportError:
    sys.exit(99)
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pipelines.airflow import Pods
from pipelines.airflow.pod_operator import SvpPodOperator
def cleanup(self, pod, remote_pod, *a, **k): raise AirflowException("pod failed")
KubernetesPodOperator.cleanup = cleanup
pods = Pods(image="svp:1", env={"A": "b"}, options={"namespace": "ml"})
task = pods.task(["report", "study"], {}, task_id="report")
assert task.image == "svp:1" and task.arguments == ["report", "study"] and task.namespace == "ml"
assert task.do_xcom_push is False and task.termination_grace_period == 120 and not task.cmds
def ended(code):
    terminated = None if code is None else types.SimpleNamespace(exit_code=code)
    state = types.SimpleNamespace(terminated=terminated)
    status = types.SimpleNamespace(name="base", state=state)
    remote = types.SimpleNamespace(status=types.SimpleNamespace(container_statuses=[status]))
    try:
        task.cleanup(None, remote)
    except AirflowFailException:
        return "final"
    except AirflowException:
        return "again"
found = [ended(c) for c in (3, 4, 1, 75, 137, 143, None)]
assert found == ["final"] * 3 + ["again"] * 4, found
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(material / "pod")}
        done = subprocess.run(
            [AIRFLOW, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode == 99:
            pytest.skip("Airflow's environment has no Kubernetes provider")
        assert done.returncode == 0, done.stderr[-3000:]


def test_pods_hold_plain_settings():
    pods = Pods(image="svp:1", options={"namespace": "ml"})
    assert (pods.image, pods.options["namespace"], pods.grace_s) == ("svp:1", "ml", 120)
