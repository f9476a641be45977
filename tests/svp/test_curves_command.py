"""`svp curves`, against a plain computation that shares no code with svp."""

import csv
import json
import math
import os
import statistics
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest

from svp.cli import run
from svp.errors import InputError
from svp.study.curve_file import read_curves
from svp.study.curve_measures import find_baseline, measure_curves

LABELBENCH = os.environ.get("SVP_LABELBENCH_CURVES", "")
RANDOM = {200: (0.59, 0.61), 400: (0.69, 0.71), 600: (0.75, 0.77), 800: (0.79, 0.81), 1000: (0.81, 0.83)}  # fmt: skip # noqa: E501
ACTIVE = {200: (0.59, 0.61), 400: (0.74, 0.76), 600: (0.815, 0.835), 800: (0.83, 0.85), 1000: (0.84, 0.86)}  # fmt: skip # noqa: E501


def plain_savings(rows, groups, baseline):
    """Savings by the text of the definition: means per size, running maximum, straight lines."""
    values = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = (*(row[g] for g in groups), row["strategy"])
        values[key][int(row["num_labeled"])].append(float(row["test_acc"]))
    means = {k: sorted((n, statistics.fmean(a)) for n, a in by.items()) for k, by in values.items()}
    found = {}
    for key, curve in means.items():
        names = [k for k in means if k[:-1] == key[:-1] and k[-1].startswith(baseline)]
        best, inverse = -math.inf, []
        for n, a in means[names[0]]:
            best = max(best, a)
            inverse.append((n, best))
        ratios, censored = [], []
        for n1, a in curve:
            bound = a > inverse[-1][1] + 1e-9 or a < inverse[0][1] - 1e-9
            if a > inverse[-1][1] + 1e-9:
                n2 = inverse[-1][0]
            elif a <= inverse[0][1] + 1e-9:
                n2 = inverse[0][0]
            else:
                place = next(i for i, (_, b) in enumerate(inverse) if b >= a - 1e-9)
                (n_low, low), (n_high, high) = inverse[place - 1], inverse[place]
                n2 = (
                    n_high
                    if abs(high - a) < 1e-9
                    else n_low + (a - low) / (high - low) * (n_high - n_low)
                )
            ratios.append((n2 - n1) / n2)
            censored.append(bound)
        exact = [r for r, c in zip(ratios, censored, strict=True) if not c]
        found[key] = (
            len(ratios), sum(censored), statistics.fmean(ratios),
            statistics.fmean(exact) if exact else None,
        )  # fmt: skip
    return found


def write(path, curves, extra=None):
    extra = extra or {}
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*extra, "strategy", "seed", "num_labeled", "test_acc"])
        for strategy, curve in curves.items():
            for size, values in curve.items():
                for seed, value in enumerate(values):
                    writer.writerow([*extra.values(), strategy, seed, size, value])
    return path


def command(capsys, *arguments):
    code = run(["curves", *map(str, arguments)])
    assert code == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out) if "--json" in arguments else capsys.readouterr().out


def compare(path, groups, document):
    with path.open(newline="") as stream:
        expected = plain_savings(list(csv.DictReader(stream)), groups, "random")
    assert len(document["rows"]) == len(expected)
    for row in document["rows"]:
        rounds, censored, every, exact = expected[*(row[g] for g in groups), row["strategy"]]
        assert (row["rounds"], row["rounds_censored"]) == (rounds, censored)
        assert row["saving_mean"] == pytest.approx(every, abs=1e-9)
        assert row["saving_mean_uncensored"] == pytest.approx(exact, abs=1e-9)


def test_worked_example(tmp_path, capsys):
    path = write(tmp_path / "curves.csv", {"random": RANDOM, "active": ACTIVE}, {"trainer": "a"})
    document = command(capsys, path, "--json")
    assert document["schema"] == "svp.curves/1"
    assert (document["groups"], document["unit"]) == (["trainer"], "share")
    random, active = document["rows"]
    assert random["is_baseline"]
    assert random["saving_mean"] == pytest.approx(0)
    assert active["trainer"] == "a"
    assert (active["rounds"], active["rounds_censored"], active["rounds_at_least"]) == (5, 3, 3)
    point = next(
        p for p in document["points"] if (p["strategy"], p["num_labeled"]) == ("active", 400)
    )
    assert point["baseline_labels"] == pytest.approx(566.7, abs=0.05)
    assert active["saving_mean_uncensored"] == pytest.approx((0 + 0.2941) / 2, abs=1e-4)
    assert active["api"] == pytest.approx((0 + 0.05 + 0.065 + 0.04 + 0.03) / 5)
    assert active["gain_final"] == pytest.approx(0.03)
    assert active["efficiency_target"] == pytest.approx(0.82)
    assert active["efficiency"] == pytest.approx(1000 / (400 + 200 * 0.07 / 0.075))
    assert active["efficiency_recorded"] == pytest.approx(1000 / 600)
    assert active["wins"] == pytest.approx(4 / 5)
    assert active["unseen_variance"] == 4  # both seeds differ by the same number
    compare(path, ["trainer"], document)


def test_rows_at_hand_agree_with_the_plain_computation(tmp_path, capsys):
    noisy = {
        "random": {100: (0.5, 0.52, 0.48), 210: (0.6, 0.55, 0.58), 300: (0.57, 0.55, 0.56), 420: (0.7, 0.72, 0.69)},  # noqa: E501
        "good": {100: (0.5, 0.52, 0.48), 200: (0.63, 0.6, 0.6), 300: (0.71, 0.73, 0.7), 400: (0.75, 0.7, 0.8)},  # noqa: E501
        "bad": {100: (0.4, 0.42, 0.41), 200: (0.57, 0.58, 0.55), 300: (0.6, 0.61, 0.59)},
    }  # fmt: skip
    path = write(tmp_path / "noisy.csv", noisy, {"dataset": "x", "batch": 100})
    document = command(capsys, path, "--json")
    compare(path, ["dataset", "batch"], document)
    bad = next(row for row in document["rows"] if row["strategy"] == "bad")
    assert bad["rounds_at_most"] == 1


@pytest.mark.skipif(not LABELBENCH, reason="SVP_LABELBENCH_CURVES names no file of curves")
def test_published_curves_agree_with_the_plain_computation(capsys):
    path = Path(LABELBENCH)
    document = command(capsys, path, "--json")
    groups = ["dataset", "batch", "embed", "model", "trainer"]
    assert document["groups"] == groups
    compare(path, groups, document)
    # Published means: linear proxy, 10,000 labels.
    chosen = {
        row["strategy"]: row
        for row in document["rows"]
        if (row["dataset"], row["batch"], row["model"]) == ("cifar10", "1000", "linear")
    }
    assert round(100 * chosen["random_sampling"]["final_mean"], 2) == 94.27
    assert round(100 * chosen["margin_sampling"]["final_mean"], 2) == 94.88
    text = command(capsys, path)
    assert "batch 200" in text
    assert "trainer passive" in text


def test_an_increasing_curve_saves_nothing_against_itself(tmp_path):
    path = write(tmp_path / "same.csv", {"random": RANDOM, "copy": RANDOM})
    (group,) = measure_curves(read_curves(path), "random")
    copy = group.rows[1]
    assert copy.saving_mean == pytest.approx(0)
    assert (copy.rounds_censored, copy.api, copy.wins, copy.losses) == (0, 0, 0, 0)
    assert copy.efficiency == pytest.approx(1)


def test_single_seed_has_no_deviation(tmp_path, capsys):
    path = write(
        tmp_path / "one.csv", {"random": {10: (0.5,), 20: (0.6,)}, "m": {10: (0.5,), 20: (0.7,)}}
    )
    row = command(capsys, path, "--json")["rows"][1]
    assert (row["final_sd"], row["saving_sd"], row["wins"]) == (None, None, None)
    assert (row["rounds_censored"], row["saving_mean"]) == (1, 0)
    assert "0.70" not in command(capsys, path)  # in points, not shares


def test_percent_and_shares_save_the_same(tmp_path):
    share = write(tmp_path / "share.csv", {"random": RANDOM, "active": ACTIVE})
    percent = write(
        tmp_path / "percent.csv",
        {
            name: {n: [100 * v for v in values] for n, values in curve.items()}
            for name, curve in (("random", RANDOM), ("active", ACTIVE))
        },
    )
    one, hundred = (measure_curves(read_curves(p), "random")[0].rows[1] for p in (share, percent))
    assert hundred.saving_mean == pytest.approx(one.saving_mean)
    assert hundred.api == pytest.approx(100 * one.api)


def test_a_label_more_than_asked_is_the_same_round(tmp_path):
    shifted = {size + place: values for place, (size, values) in enumerate(ACTIVE.items())}
    path = write(tmp_path / "badge.csv", {"random": RANDOM, "badge": shifted})
    row = measure_curves(read_curves(path), "random")[0].rows[1]
    assert row.api_rounds == 5
    assert row.final_labels == 1004


def test_groups_and_measurements_are_told_apart(tmp_path):
    path = tmp_path / "mixed.csv"
    with path.open("w") as stream:
        stream.write("strategy,seed,num_labeled,test_acc,lr,batch,val,pool_acc,notes\n")
        for lr in ("0.1", "0.01"):
            for strategy in ("random", "margin"):
                for place, size in enumerate((10, 20, 30)):
                    value = f"0.{place + 5}"
                    stream.write(f"{strategy},0,{size},{value},{lr},10,0.{place}7,{value},x\n")
    read = read_curves(path)
    assert read.columns == ("lr", "batch", "notes")
    assert read.ignored == ("val", "pool_acc")
    assert [group.key for group in read.groups] == [("0.1", "10", "x"), ("0.01", "10", "x")]
    with pytest.raises(InputError, match="tells the runs apart"):
        read_curves(_conflicting(tmp_path), by=[])


def _conflicting(folder):
    path = folder / "conflict.csv"
    path.write_text("strategy,seed,num_labeled,test_acc,lr\nrandom,0,10,0.5,1\nrandom,0,10,0.6,2\n")
    return path


def test_results_of_a_simulation_are_read_as_they_are(tmp_path):
    from svp.study.curves import RESULT_COLUMNS

    path = tmp_path / "results.csv"
    with path.open("w") as stream:
        stream.write(",".join(RESULT_COLUMNS) + "\n")
        for strategy in ("random", "margin"):
            for size in (10, 20):
                numbers = ",".join(["0.5"] * (len(RESULT_COLUMNS) - 4))
                stream.write(f"{strategy},linear,0,{size},{numbers}\n")
    assert read_curves(path).columns == ("proxy",)


def test_rows_without_a_value_and_repeated_rows_are_counted(tmp_path):
    path = tmp_path / "holes.csv"
    path.write_text(
        "strategy,seed,num_labeled,test_acc\n"
        "random,0,10,0.5\nrandom,0,20,0.6\nrandom,1,10,0.5\nrandom,1,20,NaN\nrandom,0,10,0.5\n\n"
    )
    read = read_curves(path)
    assert (read.blank, read.repeated) == (1, 1)
    (row,) = measure_curves(read, "random")[0].rows
    assert (row.rounds, row.seeds) == (1, 2)  # only sizes that all seeds recorded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strategy,seed,num_labeled\na,0,1\n", "column test_acc"),
        ("strategy,seed,num_labeled,test_acc\na,0,1,high\n", "row 2"),
        ("strategy,seed,num_labeled,test_acc\na,0,1,-0.1\n", "share in"),
        ("strategy,seed,num_labeled,test_acc\na,0,1.5,0.1\n", "whole number"),
        ("strategy,seed,num_labeled,test_acc\na,0,1\n", "4 columns"),
        ("strategy,seed,num_labeled,test_acc\na,,1,0.5\n", "strategy and seed"),
        ("strategy,seed,num_labeled,test_acc\na,0,1,\n", "Got none"),
        ("strategy,seed,num_labeled,test_acc,test_acc\na,0,1,1,1\n", "each column once"),
        ("", "column strategy"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, message):
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_curves(path)


def test_seeds_without_a_common_size(tmp_path):
    path = tmp_path / "ragged.csv"
    path.write_text(
        "strategy,seed,num_labeled,test_acc\n"
        "random,0,10,0.5\nrandom,0,20,0.6\nrandom,1,11,0.5\nrandom,1,21,0.7\n"
    )
    (row,) = measure_curves(read_curves(path), "random")[0].rows
    assert [point.num_labeled for point in row.points] == [10.5, 20.5]
    path.write_text(path.read_text() + "random,1,31,0.8\n")
    with pytest.raises(InputError, match="share recorded"):
        measure_curves(read_curves(path), "random")


def test_the_baseline_by_another_spelling():
    assert find_baseline(["random", "random_sampling"], "random") == "random"
    assert find_baseline(["margin", "random_sampling"], "random") == "random_sampling"
    assert find_baseline(["margin", "Random"], "random_sampling") == "Random"
    assert find_baseline(["margin"], "random") is None


def test_files_of_the_command(tmp_path, capsys):
    path = write(tmp_path / "curves.csv", {"random": RANDOM, "a<b&": ACTIVE}, {"trainer": "x"})
    figure, rows = tmp_path / "out" / "figure.svg", tmp_path / "out" / "rows.csv"
    text = command(capsys, path, "--figure", figure, "--csv", rows)
    assert "3/5" in text
    root = ET.parse(figure).getroot()
    words = " ".join(root.itertext())
    assert "a<b&" in words
    assert "trainer x" in words
    assert "http" not in figure.read_text().replace("http://www.w3.org/2000/svg", "")
    with rows.open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["strategy"] for row in written] == ["random", "a<b&"]
    assert float(written[1]["saving_mean"]) > 0
    assert run(["curves", str(path), "--figure", str(tmp_path / "x.gif")]) == 3
    assert run(["curves", str(path), "--baseline", "nobody"]) == 3
    assert "random, a<b&" in capsys.readouterr().err


def test_the_first_batch_can_be_left_out(tmp_path, capsys):
    path = write(tmp_path / "curves.csv", {"random": RANDOM, "active": ACTIVE})
    active = command(capsys, path, "--skip", "1", "--json")["rows"][1]
    assert (active["rounds"], active["rounds_censored"]) == (4, 3)
    assert active["saving_mean_uncensored"] == pytest.approx(0.2941, abs=1e-4)
