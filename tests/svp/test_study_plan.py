"""What a study will take: predicted from a sample, and compared with what happened."""

import csv
import itertools
import json

import pytest
from study_fixtures import config_of, truth_of, write_encoder, write_images, write_labels

from svp.cli import run
from svp.errors import InputError
from svp.study.config import FinetuneSection, read_study_toml, write_study_toml
from svp.study.planning import PLAN_FILE, deviations, predict
from svp.study.prices import PricesSection
from svp.study.study import Study
from svp.study.timing import Blocks, EmbedTiming, FinetuneTiming, Timing

OPTIONS = {"steps": 4, "batch_size": 8, "method": "supervised", "mode": "ft"}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    write_images(root / "images", train=12, test=4)
    write_encoder(root / "encoder")
    return root


@pytest.fixture
def study(material, tmp_path):
    prices = PricesSection(as_of="2026-02-01", label=0.05, machine_hour=3.0, gb_month=0.02,
                           thousand_requests=0.005)  # fmt: skip
    config = config_of(material, finetune=FinetuneSection(options=OPTIONS), prices=prices)
    return Study.create(tmp_path / "study", config)


def timing(**changes):
    embed = EmbedTiming(
        images=100,
        open_s=1.0,
        fixed_s=0.2,
        image_s=0.01,
        read_s=0.0,
        row_bytes=100.0,
        requests=10,
        dim=64,
    )
    train = FinetuneTiming(
        steps=8, step_s=0.5, decode_s=0.0, predict_s=0.25, probe_s=0.0, image_bytes=768
    )
    fields = {
        "start_s": 0.5, "scan_s": 1.0, "embed": embed, "rounds_s": {0: 1.0, 10: 2.0, 20: 4.0},
        "finetune": train, "refresh": train, "peak_bytes": 1000,
    }  # fmt: skip
    return Timing(**{**fields, **changes})


def test_a_prediction_is_the_measurement_times_the_work(study):
    plan = predict(study, timing(), budget=10, rounds=3, device="cpu")
    seconds = {one.name: one.seconds for one in plan.stages}
    assert plan.items == 48
    assert seconds["embed"] == pytest.approx(0.2 + 48 * 0.01)
    # The first round has no labels, others lie on the line through what was timed; each
    # imports and scans.
    assert [seconds[f"select {r}"] for r in range(3)] == pytest.approx([2.5, 3.5, 5.5])
    assert seconds["finetune"] == pytest.approx(4 * 0.5 + 48 * 0.25)
    assert seconds["refresh"] == pytest.approx(4 * 0.5 + 48 * (0.25 + 0.01))
    # The study only asks for refreshes, so the sum holds none.
    assert plan.hours * 3600 == pytest.approx(sum(seconds.values()) - seconds["refresh"])
    assert plan.gpu_hours == 0
    assert plan.stored_bytes == 4800
    assert plan.requests == 10 + 3 * 10
    assert plan.money.labels == pytest.approx(30 * 0.05)
    assert plan.money.machine == pytest.approx(plan.hours * 3.0)
    assert plan.money.total == pytest.approx(
        plan.money.labels + plan.money.machine + plan.money.storage_month + plan.money.requests
    )
    assert plan.money.as_of == "2026-02-01"


def test_views_are_embedded_once_each(study):
    both = Study.open(study.path, {"encoder.views": ["eval", "weak:1", "strong:1"]})
    one, three = (predict(s, timing(), budget=10, rounds=1, device="cpu") for s in (study, both))
    assert three.stages[0].seconds == pytest.approx(3 * one.stages[0].seconds)
    assert three.stored_bytes == 3 * one.stored_bytes


def test_prices_have_a_date_and_no_default(study, material, tmp_path):
    assert read_study_toml(study.path / "study.toml").prices.label == 0.05
    bare = config_of(material)
    assert "prices" not in write_study_toml(bare)
    assert predict(
        Study.create(tmp_path / "bare", bare), timing(), budget=10, rounds=1, device="cpu"
    ).money is None  # fmt: skip
    with pytest.raises(InputError, match="as_of"):
        PricesSection(as_of="yesterday")
    with pytest.raises(InputError, match="label"):
        PricesSection(as_of="2026-01-01", label=-1.0)


def test_a_campaign_is_planned_run_and_checked(study, tmp_path, capsys):
    path = str(study.path)
    assert run(["plan", path, "--check"]) == 3
    assert run(["plan", path]) == 3
    words = ["plan", path, "-n", "6", "--rounds", "1", "--sample", "24", "--device", "cpu"]
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == "svp.plan/1"
    assert all(one["seconds"] > 0 for one in printed["plan"]["stages"])
    # Nothing of the study or its store was touched but the plan itself.
    assert {p.name for p in study.path.iterdir()} == {"study.toml", PLAN_FILE}
    assert deviations(study) == ()

    assert run(["embed", path, "--device", "cpu"]) == 0
    assert "embed: planned" in capsys.readouterr().err
    assert run(["select", path, "-n", "6", "--device", "cpu"]) == 0
    assert "select 0: planned" in capsys.readouterr().err
    with (study.path / "rounds" / "000" / "selection.csv").open(newline="") as stream:
        ids = [row["id"] for row in csv.DictReader(stream)]
    truth = truth_of(study)
    answers = write_labels(tmp_path / "answers.csv", {key: truth[key] for key in truth})
    assert len(ids) == 6
    assert run(["labels", "import", path, str(answers)]) == 0
    assert run(["finetune", path, "--device", "cpu"]) == 0
    assert "finetune: planned" in capsys.readouterr().err
    assert run(["report", path]) == 0
    assert "The plan was off by" in capsys.readouterr().err

    assert run(["plan", path, "--check", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in checked["deviations"]] == ["embed", "select 0", "finetune"]
    one = checked["deviations"][0]
    assert one["error"] == pytest.approx(one["predicted_s"] / one["actual_s"] - 1)


@pytest.mark.parametrize(
    ("rows", "counts"), [(1000, (1, 100, 0, 450, 449)), (7, (3, 4)), (1, (1,))]
)
def test_timed_rows_are_neighbours_spread_over_the_pool_and_none_comes_twice(rows, counts):
    blocks, seen = Blocks(rows), []
    for count in counts:
        taken = blocks.take(count).tolist()
        assert len(taken) == count
        assert taken == sorted(taken)
        seen += taken
        if count == 100:
            follows = sum(b - a == 1 for a, b in itertools.pairwise(taken))
            assert follows > 80
            assert taken[-1] - taken[0] > 900
        assert (blocks.taken, blocks.left) == (len(seen), rows - len(seen))
    assert sorted(seen) == list(range(rows))


def test_numbers_out_of_range_are_refused(study):
    from svp.study.planning import plan_study

    with pytest.raises(InputError, match="rounds"):
        plan_study(study, budget=5, rounds=0)


def test_a_damaged_plan_is_named(study):
    (study.path / PLAN_FILE).write_text("{}")
    with pytest.raises(InputError, match="svp plan"):
        deviations(study)
