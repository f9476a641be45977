"""Strategies of other packages: plug-ins by entry point, and those of scikit-activeml."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from svp.cli.app import app
from svp.errors import InputError
from svp.proxies import LinearConfig, Standardiser, fit_proxy
from svp.strategies.base import PoolView
from svp.strategies.catalog import STRATEGIES, build_strategy, describe, names, run_strategy
from svp.strategies.keys import keys_of

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")


def _blocks():
    found = re.finditer(r"^```(\w+) title=(\S+)[^\n]*\n(.*?)^```$", DOCUMENT, re.M | re.S)
    return {match[2]: match[3] for match in found}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install the example of the document: its module, and what pip writes about it."""
    blocks = _blocks()
    (tmp_path / "farthest.py").write_text(blocks["farthest.py"])
    info = tmp_path / "svp_farthest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: svp-farthest\nVersion: 1.0\n")
    points = re.search(r'entry-points\."svp.strategies"\]\n(.*)', blocks["pyproject.toml"])[1]
    name, _, value = points.partition(" = ")
    (info / "entry_points.txt").write_text(f"[svp.strategies]\n{name} = {json.loads(value)}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield info
    sys.modules.pop("farthest", None)


@pytest.fixture(scope="module")
def view():
    rng = np.random.default_rng(0)
    y_N = rng.integers(0, 3, 200)
    x_Nd = torch.from_numpy((rng.normal(size=(200, 6)) + 2 * np.eye(6)[y_N]).astype(np.float32))
    labelled = np.arange(30)
    proxy = fit_proxy(
        x_Nd[:30], torch.from_numpy(y_N[:30]), 3, LinearConfig(),
        standardiser=Standardiser.fit(x_Nd), seed=0, device="cpu",
    )  # fmt: skip
    return PoolView(
        embeddings_Nd=x_Nd,
        keys_N=keys_of(f"i{row}" for row in range(200)),
        unlabelled_U=np.arange(30, 200),
        labelled_L=labelled,
        y_L=y_N[:30],
        n_classes=3,
        proxy=proxy,
    )


def _permuted(view, seed):
    order = np.random.default_rng(seed).permutation(200)
    place = np.argsort(order)
    labelled = place[view.labelled_L]
    by_row = np.argsort(labelled)
    return dataclasses.replace(
        view,
        embeddings_Nd=view.embeddings_Nd[torch.from_numpy(order)],
        keys_N=view.keys_N[order],
        unlabelled_U=np.sort(place[view.unlabelled_U]),
        labelled_L=labelled[by_row],
        y_L=view.y_L[by_row],
    )


def test_the_example_of_the_document_is_a_strategy(plugin, view):
    assert "farthest" not in sys.modules
    assert names()[-1] == "farthest"
    assert "farthest" not in sys.modules  # listed by name, not imported
    one = describe()[-1]
    assert one.name == "farthest"
    assert one.meanings["quantile"]
    strategy = build_strategy("farthest", {"quantile": 0.9})
    chosen = run_strategy(strategy, view, 12, 1)
    other = _permuted(view, 4)
    again = run_strategy(strategy, other, 12, 1)
    assert view.keys_N[chosen.rows_b].tolist() == other.keys_N[again.rows_b].tolist()
    with pytest.raises(InputError, match=r"farthest\.quantil .* Did you mean quantile"):
        build_strategy("farthest", {"quantil": 0.9})


def test_the_command_line_knows_plugins(plugin):
    listed = CliRunner().invoke(app, ["strategies", "list", "--json"])
    assert "farthest" in [one["name"] for one in json.loads(listed.stdout)["strategies"]]
    shown = CliRunner().invoke(app, ["strategies", "show", "farthest", "--pool", "1000"])
    assert "quantile = 1.0" in shown.stdout
    assert "MiB" in shown.stdout


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import nothing_like_this", "must be importable"),
        ("Farthest = 3", "must be a frozen dataclass"),
        ("class Farthest: name = 'farthest'", "must be a frozen dataclass"),
    ],
)
def test_broken_plugins_are_named(plugin, module, message):
    (plugin.parent / "farthest.py").write_text(module + "\n")
    with pytest.raises(InputError, match=f"svp-farthest {message}"):
        build_strategy("farthest")


def test_every_strategy_is_in_the_document():
    done = CliRunner().invoke(app, ["strategies", "list", "--markdown"])
    rows = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines()}
    for cls in STRATEGIES:
        assert rows[cls.name] in DOCUMENT.splitlines(), (
            f"docs/strategies.md must have the row of {cls.name}; take the table from "
            "`svp strategies list --markdown`"
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("RandomSampling", {}),
        ("UncertaintySampling", {"method": "margin_sampling"}),
        ("CoreSet", {}),
        ("TypiClust", {}),
        ("Badge", {}),
        ("MaxHerding", {}),
        ("Falcun", {}),
        ("ContrastiveAL", {}),
    ],
)
def test_a_query_strategy_of_scikit_activeml(view, query, params):
    pytest.importorskip("skactiveml")
    strategy = build_strategy(f"skactiveml:{query}", params)
    chosen = run_strategy(strategy, view, 7, 3)
    other = _permuted(view, 9)
    again = run_strategy(strategy, other, 7, 3)
    assert view.keys_N[chosen.rows_b].tolist() == other.keys_N[again.rows_b].tolist()


@pytest.mark.filterwarnings("ignore")
def test_its_margins_are_those_of_the_proxy(view):
    pytest.importorskip("skactiveml")
    theirs = build_strategy("skactiveml:UncertaintySampling", {"method": "margin_sampling"})
    ours = run_strategy(build_strategy("margin"), view, 15, 0).rows_b
    assert set(run_strategy(theirs, view, 15, 0).rows_b.tolist()) == set(ours.tolist())


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("skactiveml:UncertaintySamplin", {}, "Did you mean UncertaintySampling"),
        ("skactiveml:UncertaintySampling", {"methd": "entropy"}, "Did you mean method"),
        ("skactiveml:QueryByCommittee", {}, "asks for ensemble"),
    ],
)
def test_misspellings_of_its_strategies(name, params, message):
    pytest.importorskip("skactiveml")
    with pytest.raises(InputError, match=message):
        build_strategy(name, params)
