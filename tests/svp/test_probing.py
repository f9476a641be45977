"""Linear probes of encoders, on digits and on a store; nothing is embedded twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from study_fixtures import config_of, write_encoder, write_images

from svp.cli import run
from svp.errors import InputError
from svp.proxies import Standardiser
from svp.proxies.regularisation import LADDER
from svp.study.labels import import_labels
from svp.study.linear_probe import measure
from svp.study.study import Study


def _digits() -> tuple[torch.Tensor, list[str], dict[str, Any]]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    rows: dict[str, Any] = {"held_out": np.sort(order[:500]), "train": np.sort(order[500:])}
    rows["validation"] = rows["train"][::5]
    return torch.from_numpy(x).float(), [f"digit {c}" for c in y], rows


def test_the_probe_is_the_convex_optimum_at_the_best_l2_of_its_validation_part() -> None:
    x, names, rows = _digits()
    done = measure(x, names, **rows)
    assert (done.train, done.validation, done.held_out) == (1297, 260, 500)
    assert (done.classes, done.dim) == (10, 64)

    y = np.array(names)
    scale = Standardiser.fit(x[rows["train"]])
    z = scale(x).numpy().astype(np.float64)

    def fitted(part: np.ndarray, l2: float) -> LogisticRegression:
        # The penalty counts per label of the whole training set, as a prior does.
        model = LogisticRegression(C=1 / (l2 * len(rows["train"])), max_iter=3000, tol=1e-8)
        return model.fit(z[part], y[part])

    def loss(l2: float) -> float:
        held = rows["validation"]
        p = fitted(np.setdiff1d(rows["train"], held), l2).predict_proba(z[held])
        truth = np.array([int(name.split()[1]) for name in y[held]])
        return float(-np.log(p[np.arange(len(held)), truth]).mean())

    assert done.l2 == pytest.approx(min(LADDER[:9], key=loss))
    assert done.l2 is not None
    best = fitted(rows["train"], done.l2).predict(z[rows["held_out"]])
    assert done.top1 == pytest.approx(np.mean(best == y[rows["held_out"]]), abs=1.01 / 500)
    assert done.top1 > 0.95
    assert done.top5 is not None
    assert done.top5 >= done.top1
    assert done.top1_se == pytest.approx(np.sqrt(done.top1 * (1 - done.top1) / 500))


def test_neighbours_vote_as_the_monitor_s_do() -> None:
    x, names, rows = _digits()
    y = np.array([int(name.split()[1]) for name in names])
    unit = torch.nn.functional.normalize(x, dim=1).numpy()
    near = np.argsort(-(unit[rows["held_out"]] @ unit[rows["train"]].T), axis=1)[:, :20]
    votes = [np.bincount(y[rows["train"]][row], minlength=10).argmax() for row in near]
    expected = np.mean(np.array(votes) == y[rows["held_out"]])
    assert measure(x, names, **rows).knn == pytest.approx(expected, abs=2 / 500)


def test_the_published_recipe_runs_on_features_as_they_are() -> None:
    x, names, rows = _digits()
    few = {**rows, "train": rows["train"][:600], "validation": rows["train"][:1]}
    done = measure(x / 16, names, **few, recipe="base")
    assert done.l2 is None
    assert done.validation == 60
    assert done.top1 > 0.8


def test_a_class_without_training_labels_counts_as_wrong() -> None:
    x, names, rows = _digits()
    kept = np.array([row for row in rows["train"] if names[row] != "digit 3"])
    done = measure(x, names, train=kept, validation=kept[::5], held_out=rows["held_out"])
    threes = np.mean([names[row] == "digit 3" for row in rows["held_out"]])
    assert done.classes == 10
    assert done.top1 <= 1 - threes


def test_too_little_is_refused() -> None:
    x, names, rows = _digits()
    one = np.array([row for row in rows["train"] if names[row] == "digit 3"])
    with pytest.raises(InputError, match="at least two classes"):
        measure(x, names, train=one, validation=one[:1], held_out=rows["held_out"])
    with pytest.raises(InputError, match="recipe must be"):
        measure(x, names, **rows, recipe="best")  # type: ignore[arg-type]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "images", train=12, test=6)
    write_encoder(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SVP_STORE", raising=False)
    return tmp_path


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def call(*arguments: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        found = run([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert found == code, err
        return {"stderr": err, **(json.loads(out) if out else {})}

    return call


FREE = ("--source", "images", "--store", "store", "--workers", "1")


def test_nothing_is_embedded_twice(here: Path, done: Callable[..., dict[str, Any]]) -> None:
    first = done("encoders", "probe", "./encoder", *FREE)
    assert first["schema"] == "svp.encoders.probe/1"
    probe = first["probe"]
    assert (probe["embedded"], probe["reused"]) == (54, 0)
    assert (probe["train"], probe["held_out"], probe["held_out_by"]) == (36, 18, "test")
    assert probe["validation"] == 7
    assert probe["top5"] is None
    assert probe["top1"] > 0.5
    again = done("encoders", "probe", "./encoder", *FREE)["probe"]
    assert (again["embedded"], again["reused"]) == (0, 54)
    by_id = done("encoders", "probe", probe["encoder_id"], *FREE)["probe"]
    for other in (again, by_id):
        assert {k: v for k, v in other.items() if k not in ("embedded", "reused", "fit_s")} == {
            k: v for k, v in probe.items() if k not in ("embedded", "reused", "fit_s")
        }


def test_an_id_without_embeddings_and_missing_options_are_refused(
    here: Path, done: Callable[..., dict[str, Any]]
) -> None:
    known = done("encoders", "probe", "./encoder", *FREE)["probe"]["encoder_id"]
    assert (
        "0123456789abcdef" in done("encoders", "probe", "0123456789abcdef", *FREE, code=3)["stderr"]
    )
    write_images(here / "images", train=13, test=6, seed=1)
    assert "by its spec" in done("encoders", "probe", known, *FREE, code=3)["stderr"]
    assert "all of ENCODER" in done("encoders", "probe", "./encoder", code=3)["stderr"]


def test_the_labels_of_a_study_s_people_win(
    here: Path, done: Callable[..., dict[str, Any]]
) -> None:
    study = Study.create(here / "mine", config_of(here))
    pool = study.scan().pool
    # People call red things blue, so two classes are left.
    named = [
        f"{key},{'blue' if name == 'red' else name}"
        for key, name in zip(pool.ids, pool.labels or (), strict=True)
    ]
    (here / "answers.csv").write_text("\n".join(["id,label", *named]) + "\n")
    import_labels(study, here / "answers.csv")
    probe = done("encoders", "probe", "./encoder", "--study", "mine")["probe"]
    assert probe["classes"] == 2
    assert "Leave one" in done("encoders", "probe", "--study", "mine", *FREE, code=3)["stderr"]


def test_without_a_test_split_a_fifth_is_held_out(
    here: Path, done: Callable[..., dict[str, Any]]
) -> None:
    free = ("--source", "images/train", "--store", "store", "--workers", "1")
    probe = done("encoders", "probe", "./encoder", *free)["probe"]
    assert (probe["train"], probe["held_out"], probe["held_out_by"]) == (29, 7, "part")
    other = done("encoders", "probe", "./encoder", *free, "--seed", "1")["probe"]
    assert other["embedded"] == 0


def test_pretraining_measures_what_it_made(here: Path, done: Callable[..., dict[str, Any]]) -> None:
    made = ("pretrain", "--source", "images", "--output", "own", "--image-size", "16",
            "--epochs", "1", "--arch", "resnet8")  # fmt: skip
    assert "--store" in done(*made, "--probe", code=3)["stderr"]
    found = done(*made, "--probe", "--store", "store")
    assert found["probe"]["embedded"] == 54
    assert found["probe"]["knn_k"] == 20
    again = done(*made, "--probe", "--store", "store")
    assert again["probe"]["embedded"] == 0
    assert again["probe"]["top1"] == found["probe"]["top1"]
