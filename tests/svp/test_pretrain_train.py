import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from svp.augment.byol import views_digits
from svp.errors import InputError
from svp.pretrain.config import PretrainConfig
from svp.pretrain.train import preprocessing_of, pretrain

TINY = PretrainConfig(
    arch="resnet8",
    image_size=8,
    epochs=3,
    batch_size=16,
    optimiser="sgd",
    lr=0.05,
    excluded="vectors",
    warmup_epochs=0.5,
    momentum0=0.9,
    head_width=16,
    projection_dim=8,
    views=views_digits(),
    knn_every_epochs=2,
)

SCRIPT = """
import sys
from pathlib import Path
import torch
from tests_pretrain_case import TINY, random_images
from svp.pretrain.train import pretrain
torch.set_num_threads(1)
pretrain(random_images(), TINY, seed=3, output=Path(sys.argv[1]), checkpoint_every_s=0.0)
"""


def random_images(n=72):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)


def weights(folder):
    return (folder / "weights.safetensors").read_bytes()


class _Stop(Exception):
    pass


class StopAfter:
    """A progress that ends the run at its n-th report, as a crash would."""

    def __init__(self, reports):
        self.left = reports

    def task(self, label, total, unit="items", done=0):
        del label, total, unit, done
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def advance(self, amount=1, note=""):
        del amount, note
        self.left -= 1
        if self.left < 0:
            raise _Stop

    def say(self, message):
        del message


@pytest.mark.parametrize(
    "changes", [{}, {"method": "byol", "optimiser": "adamw", "lr": 1e-3}, {"method": "simclr"}]
)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, changes):
    config = dataclasses.replace(TINY, **changes)
    whole = pretrain(random_images(), config, seed=3, output=tmp_path / "whole")
    for reports in (2, 5):
        with pytest.raises(_Stop):
            pretrain(
                random_images(),
                config,
                seed=3,
                output=tmp_path / "parts",
                checkpoint_every_s=0.0,
                progress=StopAfter(reports),
            )
        assert not (tmp_path / "parts" / "pretrain.json").exists()
    parts = pretrain(random_images(), config, seed=3, output=tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert parts.history == whole.history
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()


def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    pretrain(random_images(), TINY, seed=3, output=tmp_path / "whole")
    # The subprocess must not import this file: it would need pytest and sklearn first.
    case = (
        "import torch\n"
        "from svp.augment.byol import ViewsConfig\n"
        "from svp.augment.color import Jitter\n"
        "from svp.pretrain.config import PretrainConfig\n"
        f"TINY = {TINY!r}\n"
        "def random_images(n=72):\n"
        "    generator = torch.Generator().manual_seed(5)\n"
        "    return torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)\n"
    )
    (tmp_path / "tests_pretrain_case.py").write_text(case)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(killed)], env=environment)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pretrain(random_images(), TINY, seed=3, output=killed)
    assert weights(killed) == weights(tmp_path / "whole")


class SignalAfter(StopAfter):
    """A progress during whose n-th report the process is asked to stop."""

    def advance(self, amount=1, note=""):
        del amount, note
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_a_last_checkpoint_and_then_acts(tmp_path):
    def stop(number, frame):
        raise _Stop

    pretrain(random_images(), TINY, seed=3, output=tmp_path / "whole")
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(_Stop):
            pretrain(
                random_images(),
                TINY,
                seed=3,
                output=tmp_path / "parts",
                checkpoint_every_s=1e9,
                progress=SignalAfter(5),
            )
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)
    saved = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert saved["state"]["step"] == 5
    pretrain(random_images(), TINY, seed=3, output=tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_finished_run_is_not_repeated(tmp_path):
    first = pretrain(random_images(), TINY, seed=3, output=tmp_path)
    stamp = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    again = pretrain(random_images(), TINY, seed=3, output=tmp_path)
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == stamp
    assert again.history == first.history
    assert again.steps == first.steps == 12


def test_another_run_is_refused(tmp_path):
    with pytest.raises(_Stop):
        pretrain(
            random_images(),
            TINY,
            seed=3,
            output=tmp_path,
            checkpoint_every_s=0.0,
            progress=StopAfter(2),
        )
    with pytest.raises(InputError, match=r"config\.lr"):
        pretrain(random_images(), dataclasses.replace(TINY, lr=0.1), seed=3, output=tmp_path)
    with pytest.raises(InputError, match="seed"):
        pretrain(random_images(), TINY, seed=4, output=tmp_path)
    with pytest.raises(InputError, match="images"):
        pretrain(random_images(71), TINY, seed=3, output=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="checkpoint"):
        pretrain(random_images(), TINY, seed=3, output=tmp_path)


def test_labels_are_watched_but_never_learned_from(tmp_path):
    labels = np.arange(72, dtype=np.int64) % 3
    with_labels = pretrain(random_images(), TINY, seed=3, output=tmp_path / "a", labels_N=labels)
    pretrain(random_images(), TINY, seed=3, output=tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    knn = [seen.knn for seen in with_labels.history]
    assert knn[0] is None
    assert all(0 <= value <= 1 for value in knn[1:])


def test_the_folder_holds_the_chosen_branch_and_what_made_it(tmp_path):
    config = dataclasses.replace(TINY, branch="target", precision="bf16")
    result = pretrain(random_images(), config, seed=3, output=tmp_path)
    assert result.spread > 0.01
    described = json.loads((tmp_path / "encoder.json").read_text())
    assert described["provenance"]["branch"] == "target"
    assert described["provenance"]["config"]["arch"] == "resnet8"
    assert described["provenance"]["epochs"] == 3
    assert described["preprocessing"] == preprocessing_of(config).as_json()


def test_images_must_fit(tmp_path):
    with pytest.raises(InputError, match="uint8"):
        pretrain(random_images().float(), TINY, seed=3, output=tmp_path)
    with pytest.raises(InputError, match="at least 2"):
        pretrain(random_images(1), TINY, seed=3, output=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = dataclasses.replace(TINY, lr=1e30, warmup_epochs=0.0)
    with pytest.raises(InputError, match="finite"):
        pretrain(random_images(), config, seed=3, output=tmp_path)
    assert not (tmp_path / "encoder.json").exists()
