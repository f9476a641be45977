"""Two processes do what one does on the same batch. They talk over gloo, on the CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_finetune import NormFree, TinyEncoder, digits

from svp.errors import InputError
from svp.finetune.checkpoint import Checkpointing
from svp.finetune.config import METHODS
from svp.finetune.launch import launch_command, own_device, writes
from svp.finetune.parallel import Group, part_of
from svp.finetune.presets import preset
from svp.finetune.run import finetune

HERE = Path(__file__).parent
# MixMatch mixes within a process' share, so that it is another training on two processes.
SAME = [method for method in METHODS if method != "mixmatch"]
# One process that has imported everything forks the ones that train.
NURSERY = """
import os, sys
sys.path.insert(0, sys.argv[2])
import test_finetune_parallel as this
children = []
for rank in (0, 1):
    child = os.fork()
    if child == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3])
        try:
            this.work(sys.argv[1])
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


class Plain(NormFree):
    """The same weights every time, and no dropout, which processes draw for themselves."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__()
        self.blocks[3].p = 0.0


def train(output, method, **changes):
    given = {
        "method": method, "mode": "ft", "steps": 4, "batch_size": 9, "uratio": 2, "flip": False,
        "supervised_share": 0.25, "eval_batch_size": 1024, "head_lr": 0.1, "backbone_lr": 0.1,
        "statistics_ema": 0.9, "fairness": 0.1, "ramp_share": 0.0, "clip_norm": 5.0,
    }  # fmt: skip
    if method not in ("freematch", "softmatch"):
        given["cutoff"] = 0.15
    encoder = TinyEncoder(Plain(), 24)
    return finetune(
        encoder,
        digits(held_out=50),
        preset("small", **(given | changes)),
        output=output,
        seed=3,
        checkpointing=Checkpointing(every_steps=1, every_s=1e9),
    )


class Stopped(Exception):
    pass


def work(folder):
    """Train as one of two processes, by every method, and once from a checkpoint."""
    from torch import distributed

    from svp.finetune.training import Training

    folder, rank = Path(folder), int(os.environ["RANK"])
    distributed.init_process_group("gloo")
    for method in METHODS:
        done = train(folder / method, method)
        (folder / f"{method}-{rank}.json").write_text(json.dumps(done.metrics["history"]))
    whole_step = Training.run_step

    def two_steps(self):
        if self.step_number == 2:
            raise Stopped
        whole_step(self)

    Training.run_step = two_steps
    try:
        train(folder / "continued", "freematch")
    except Stopped:
        Training.run_step = whole_step
    distributed.barrier()
    train(folder / "continued", "freematch")
    try:
        finetune(TinyEncoder(), digits(), preset("small", steps=1, teacher="student"),
                 output=folder / "bn", seed=0)  # fmt: skip
    except InputError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", NURSERY, str(folder), str(HERE), str(port)]
    done = subprocess.run(
        command, cwd=HERE.parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("method", SAME)
def test_two_processes_make_the_model_of_one(both, tmp_path, method):
    alone = train(tmp_path, method)
    two = load_file(both / method / "model.safetensors")
    for name, value in alone.model.state().items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    ours = alone.metrics["history"]
    first, second = (json.loads((both / f"{method}-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert [sorted(entry) for entry in first] == [sorted(entry) for entry in ours]
    for entry, other in zip(first, ours, strict=True):
        assert entry == pytest.approx(other, rel=1e-3, abs=1e-5)
    metrics = json.loads((both / method / "metrics.json").read_text())
    assert metrics["processes"] == 2
    assert metrics["evaluation"]["accuracy"] == pytest.approx(alone.evaluation.accuracy, abs=0.03)


def test_mixmatch_trains_on_two_processes(both):
    metrics = json.loads((both / "mixmatch" / "metrics.json").read_text())
    assert np.isfinite(metrics["history"][-1]["loss"])


def test_two_processes_continue_from_a_checkpoint(both):
    whole = (both / "freematch" / "model.safetensors").read_bytes()
    assert (both / "continued" / "model.safetensors").read_bytes() == whole
    assert not (both / "continued" / "checkpoint.pt").exists()


def test_batch_norm_over_cpu_processes_is_refused(both):
    for rank in (0, 1):
        assert "bn_mode must be frozen" in (both / f"refused-{rank}.txt").read_text()


def test_shares_cover_every_row_once():
    for count in range(12):
        for size in (1, 2, 3, 5):
            rows = [r for rank in range(size) for r in range(count)[part_of(count, rank, size)]]
            assert rows == list(range(count))
            lengths = [len(range(count)[part_of(count, r, size)]) for r in range(size)]
            assert max(lengths) - min(lengths) <= 1


def test_one_process_alone_needs_no_launcher():
    x = torch.arange(3.0, requires_grad=True)
    group = Group()
    assert group.first
    assert group.sum(x) is x
    assert torch.equal(group.gather(x, 3), x)


def test_each_process_has_its_own_gpu_and_the_first_one_writes():
    assert own_device("cuda", {}) == "cuda"
    assert writes({})
    second = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    assert own_device("cuda", second) == "cuda:1"
    assert own_device("cpu", second) == "cpu"
    assert not writes(second)
    assert writes(second | {"RANK": "0"})
    command = launch_command(4, ["finetune", "mystudy", "--gpus", "4"])
    assert command[1:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4",
        "-m", "svp", "finetune", "mystudy", "--gpus", "4",
    ]  # fmt: skip
