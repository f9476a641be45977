import csv
import hashlib
import json
import re
from pathlib import Path

import pytest
from study_fixtures import write_encoder, write_images

from svp.cli import run
from svp.errors import InputError
from svp.finetune.presets import PRESETS as FINETUNE
from svp.metrics import improvement_rounds
from svp.study.cells import SimulationConfig
from svp.study.first_batch import labelbench_batch, labelbench_seeds
from svp.study.options import build_finetune_config, build_proxy_config, proxy_section
from svp.study.protocol import needs, protocol_names, read_protocol

OWN = """
title = "A small study"
paper = "Nobody, never"
metrics = ["test_acc"]

[dataset]
name = "Squares"
items = 60
test = 30
classes = 3
download = "https://example.org"
layout = ["train/a/0.png", "test/a/0.png"]

[encoder]
published = "a small one"
suggested = "./encoder"

[simulation]
strategies = ["random", "margin"]
proxies = ["linear"]
seeds = [1234, 9999999]
initial = 6
schedule = [[12, 3], [20, 4]]
first = "labelbench"

[finetune]
preset = "small"
"""


def test_labelbench_draws_its_published_first_batch():
    assert labelbench_batch(1234, 50_000, 1000)[:3].tolist() == [17874, 37780, 15883]
    # All 1,000 rows, as numpy.random.seed(1234 + 42) and numpy.random.choice of its main.py draw.
    whole = labelbench_batch(1234, 50_000, 1000).astype("<i8").tobytes()
    assert hashlib.sha256(whole).hexdigest() == (
        "a15f66f070f17da285f8e3e9de382a4ee44e8e0a78e945b3616eb1859ca8a714"
    )
    assert labelbench_seeds(4) == (1234, 3334155, 6667077, 9999999)
    with pytest.raises(InputError, match="fit the pool"):
        labelbench_batch(0, 5, 6)


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_is_whole(name):
    protocol = read_protocol(name)
    config, data = protocol.simulation, protocol.dataset
    assert config.sizes[-1] <= data.items
    assert "random" in config.strategies
    assert protocol.notes
    assert data.download in needs(protocol, name)
    from svp.strategies.catalog import build_strategy
    from svp.study.config import parse_study

    study = parse_study(
        {
            "name": name,
            "data": {"source": ["x"]},
            "encoder": {"spec": "./e", "views": list(protocol.encoder.views)},
            "store": {"url": "s"},
            "finetune": dict(protocol.finetune),
        }
    )
    for strategy in config.strategies:
        build_strategy(strategy, {})
    for kind in config.proxies:
        build_proxy_config(proxy_section(study, kind))
    if protocol.finetune:
        assert protocol.finetune["preset"] in FINETUNE
        build_finetune_config(protocol.finetune)


@pytest.mark.parametrize(
    ("name", "sizes", "last"),
    [
        ("asvp-cifar10", 18, 6_000),
        ("asvp-cifar100", 22, 20_000),
        ("asvp-imagenet", 16, 400_000),
        ("asvp-pets", 10, 2_000),
        ("labelbench-cifar10", 10, 10_000),
        ("labelbench-imagenet", 8, 400_000),
        ("labelbench-iwildcam", 7, 21_000),
        ("labelbench-fmow", 10, 30_000),
        ("base-cifar10", 30, 30_000),
        ("base-imagenet", 8, 100_000),
        ("distil-cifar10", 9, 25_000),
        ("dal19-cifar10", improvement_rounds(0.1, 0.7, 0.05), 35_000),
        ("dal19-mnist", 10, 12_000),
    ],
)
def test_sizes_are_the_published_ones(name, sizes, last):
    found = read_protocol(name).simulation.sizes
    assert (len(found), found[-1]) == (sizes, last)


def test_a_schedule_changes_its_step_and_ends_where_it_says():
    config = SimulationConfig(initial=200, schedule=((2000, 200), (6000, 500)), seeds=(0,))
    assert config.sizes[:3] == (200, 400, 600)
    assert config.sizes[9:12] == (2000, 2500, 3000)
    assert SimulationConfig(initial=6, schedule=((10, 3),)).sizes == (6, 9, 10)
    for wrong in (
        {"schedule": ((10, 3),)},
        {"initial": 6, "schedule": ((6, 3),)},
        {"initial": 6, "schedule": ((9, 0),)},
        {"initial": 6, "schedule": ((9, 3),), "batch": 3},
        {"batch": 3},
        {"rounds": 3},
        {},
    ):
        with pytest.raises(InputError, match=r"Sizes must|schedule must"):
            SimulationConfig(**wrong)


def test_list_and_show(capsys):
    assert run(["protocols"]) == 0
    assert "asvp-imagenet" in capsys.readouterr().out
    assert run(["protocols", "show", "labelbench-cifar10", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sizes"][-1] == 10_000
    assert shown["protocol"]["dataset"]["name"] == "CIFAR-10"
    assert run(["protocols", "show", "asvp-cifar"]) == 3
    assert "asvp-cifar10" in capsys.readouterr().err


def test_without_the_data_the_command_says_what_to_download(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["simulate", "--protocol", "asvp-pets"]) == 3
    said = capsys.readouterr().err
    assert "robots.ox.ac.uk" in said
    assert "train/Abyssinian" in said
    assert re.search("--source, --encoder, --store", said)
    options = ["--source", "nowhere", "--encoder", "e", "--store", "s"]
    assert run(["simulate", "--protocol", "asvp-pets", *options]) == 3
    assert "which is not there" in capsys.readouterr().err
    assert run(["simulate", "--protocol", "asvp-pets", "--budget", "5"]) == 3
    assert not list(tmp_path.iterdir())


def test_one_command_runs_a_protocol_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", train=20, test=10)
    write_encoder(tmp_path / "encoder")
    (tmp_path / "small.toml").write_text(OWN)
    command = ["simulate", "--protocol", "small.toml", "--json"]
    data = ["--source", "images", "--encoder", "./encoder", "--store", "store"]
    assert run([*command, *data]) == 0
    document = json.loads(capsys.readouterr().out)
    with Path(document["table"]).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["num_labeled"] for row in rows} == {"6", "9", "12", "16", "20"}
    assert {row["seed"] for row in rows} == {"1234", "9999999"}
    assert (tmp_path / "small" / "study.toml").is_file()
    lines = (tmp_path / "small" / "simulation").glob("*/metrics.jsonl")
    assert len(next(lines).read_text().splitlines()) == len(rows)
    # Again: the study is there, its data need not be named, and nothing is run twice.
    assert run(command) == 0
    again = json.loads(capsys.readouterr().out)["result"]
    assert (again["cells"], again["reused"]) == (4, 4)
    # The first batch is LabelBench's.
    folder = tmp_path / "small" / "simulation"
    cell = json.loads(next(folder.glob("*/cells/margin-linear-1234.json")).read_text())
    pool = sorted(
        f"train/{p.parent.name}/{p.name}" for p in (tmp_path / "images/train").glob("*/*")
    )
    assert cell["selected"][0] == [pool[row] for row in labelbench_batch(1234, len(pool), 6)]
    # Fewer rounds and runs.
    assert run([*command, "--rounds", "2", "--seeds", "1"]) == 0
    short = json.loads(capsys.readouterr().out)["result"]
    assert {point["num_labeled"] for point in short["points"]} == {6, 9, 12}
