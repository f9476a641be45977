import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_finetune import TinyEncoder, digits

from svp.errors import IdentityError
from svp.finetune.checkpoint import Checkpointing
from svp.finetune.presets import preset
from svp.finetune.run import finetune

HERE = Path(__file__).parent
CONFIG = {
    "steps": 40, "batch_size": 8, "uratio": 2, "supervised_share": 0.1, "eval_batch_size": 1024,
    "flip": False, "teacher": "student",
}  # fmt: skip
# Starting Python and importing torch takes longer than the training, so one process that has
# imported everything forks the ones that are killed.
NURSERY = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_finetune_resume as this
folder, kills = Path(sys.argv[1]), 0
for delay_s in (0.0, 0.01, 0.02, 0.05, 0.1):
    child = os.fork()
    if child == 0:
        this.train(folder)
        os._exit(0)
    seen, end = this.stamp(folder), time.monotonic() + 60
    while this.stamp(folder) == seen and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
print(kills)
"""


def train(output, **changes):
    return finetune(
        TinyEncoder(),
        digits(held_out=50),
        preset("small", **(CONFIG | changes)),
        output=output,
        seed=3,
        checkpointing=Checkpointing(every_steps=1, every_s=1e9),
    )


def outcome(folder):
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}


def stamp(folder):
    try:
        return (folder / "checkpoint.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def test_a_kill_at_any_instant_ends_bit_for_bit_as_if_undisturbed(tmp_path):
    undisturbed = train(tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", NURSERY, str(killed), str(HERE)]
    done = subprocess.run(
        command, cwd=HERE.parent.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(done.stdout) >= 3
    assert not (killed / "metrics.json").exists()
    resumed = train(killed)
    assert outcome(killed) == outcome(tmp_path / "undisturbed")
    assert resumed.metrics["history"] == undisturbed.metrics["history"]
    leftovers = {p.name for p in killed.iterdir() if not p.name.endswith(".tmp")}
    assert leftovers == {
        "model.safetensors", "config.json", "metrics.json", "predictions.parquet",
    }  # fmt: skip


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "adamw", "method": "supervised", "ema": 0.0},
        {"teacher": "average", "ema": 0.9, "mode": "ft"},
        {"method": "fixmatch", "cutoff": 0.3},
        {"method": "freematch", "statistics_ema": 0.9},
        {"method": "softmatch", "statistics_ema": 0.9},
        {"method": "uda", "signal_annealing": "linear", "cutoff": 0.3},
        {"method": "pseudolabel", "cutoff": 0.3, "accumulate": 2},
        {"method": "mixmatch"},
    ],
)
def test_every_step_can_be_the_last_one_before_an_interruption(tmp_path, monkeypatch, changes):
    changes = {"steps": 6, "supervised_share": 0.34, **changes}
    undisturbed = train(tmp_path / "undisturbed", **changes)
    from svp.finetune.training import Training

    whole_step, last = Training.run_step, []

    def at_most(self):
        if self.step_number == last[-1]:
            raise Stopped
        whole_step(self)

    monkeypatch.setattr(Training, "run_step", at_most)
    for step in range(6):
        last.append(step)
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", **changes)
    monkeypatch.undo()
    resumed = train(tmp_path / "stopped", **changes)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "undisturbed")
    assert resumed.metrics["history"] == undisturbed.metrics["history"]


def test_a_finished_run_is_returned_without_work(tmp_path, monkeypatch):
    first = train(tmp_path, steps=2)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = train(tmp_path, steps=2)
    assert not first.reused
    assert again.reused
    assert again.evaluation == first.evaluation
    assert again.metrics == first.metrics
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    x = digits().images_N3SS[:10]
    assert torch.equal(again.model.logits(x), first.model.logits(x))


def test_another_run_s_output_is_refused_unless_told_to_restart(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(IdentityError, match="restart"):
        train(tmp_path, steps=3)
    data, config = digits(held_out=50), preset("small", **(CONFIG | {"steps": 3}))
    redone = finetune(TinyEncoder(), data, config, output=tmp_path, seed=3, restart=True)
    assert redone.metrics["steps"] == 3


def test_another_run_s_checkpoint_is_refused_unless_told_to_restart(tmp_path, monkeypatch):
    from svp.finetune import run

    def stop(*args, **kwargs):
        raise Stopped

    monkeypatch.setattr(run, "publish", stop)
    with pytest.raises(Stopped):
        train(tmp_path, steps=2)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint.pt").exists()
    with pytest.raises(IdentityError, match="another run"):
        train(tmp_path, steps=3)
    data, config = digits(held_out=50), preset("small", **(CONFIG | {"steps": 3}))
    finetune(TinyEncoder(), data, config, output=tmp_path, seed=3, restart=True)

    (tmp_path / "metrics.json").unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(IdentityError, match="cannot be read"):
        train(tmp_path, steps=3)
