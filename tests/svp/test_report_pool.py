"""What a report reads from a real store, real images and receipts: map, copies, time, money."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from study_fixtures import config_of, truth_of, write_labels, write_material

from feature_store.pool import Pool
from svp.cli import run
from svp.study.embedding import embed_study
from svp.study.labels import import_labels
from svp.study.prices import PricesSection
from svp.study.record import read_rounds
from svp.study.refreshes import Refresh
from svp.study.report import gather_report
from svp.study.report_map import project, sample_rows
from svp.study.report_pictures import EARLIER_ITEMS, EARLIER_ROUNDS
from svp.study.report_time import read_history, read_stages
from svp.study.rounds import select
from svp.study.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with two labelled rounds and an open one, copies in its pool, and prices."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        write_material(root, train=12, test=4)
        prices = PricesSection(as_of="2025-01-01", currency="EUR", label=0.5, gb_month=1000.0)
        made = Study.create(root / "study", config_of(root, prices=prices))
        red = root / "images" / "train" / "red"
        shutil.copy(red / "red001.png", red / "copy.png")
        embed_study(made)
        truth = truth_of(made)
        for _ in range(2):
            picks = select(made, 6).picks
            import_labels(
                made, write_labels(root / "l.csv", {pick.id: truth[pick.id] for pick in picks})
            )
        select(made, 6)
        yield made


def test_the_map_shows_picks_labels_and_the_pool(study):
    report = gather_report(study, quick=True)
    drawn = report.embedding_map
    assert drawn.method == "PCA"
    assert drawn.total == len(drawn.points) == report.pool_size
    by_id = {point.id: point for point in drawn.points}
    first, _, last = read_rounds(study)
    assert [(by_id[p.id].round, by_id[p.id].rank) for p in first.picks] == [
        (0, p.rank) for p in first.picks
    ]
    assert all(by_id[p.id].label for p in first.picks)
    assert not any(by_id[p.id].label for p in last.picks)
    assert gather_report(study, quick=True).embedding_map == drawn


def test_the_map_needs_no_images_but_the_store(study, tmp_path):
    images = study.path.parent / "images"
    images.rename(tmp_path / "away")
    try:
        report = gather_report(study, quick=True)
    finally:
        (tmp_path / "away").rename(images)
    assert report.embedding_map is not None
    store = study.path.parent / "store"
    store.rename(tmp_path / "away")
    try:
        assert gather_report(study, quick=True).embedding_map is None
    finally:
        (tmp_path / "away").rename(store)


def test_copies_are_found_or_it_is_said_why_not(study, monkeypatch):
    found = gather_report(study).copies
    assert found.exact == 1
    group = next(one for one in found.groups if "train/red/copy.png" in {i.id for i in one.items})
    assert group.items[0].kind == "kept"
    assert all(item.thumbnail is not None for item in group.items)
    quick = gather_report(study, quick=True)
    assert quick.copies is None
    assert f"svp pool duplicates {study.path}" in quick.copies_skipped
    monkeypatch.setattr("svp.study.report_pictures.LARGEST_SEARCH", 10)
    assert "more than the 10" in gather_report(study).copies_skipped


def test_earlier_selections_are_newest_first(study):
    report = gather_report(study, quick=True)
    assert report.gallery.round == 2
    assert [one.round for one in report.earlier] == [1, 0]
    assert len(report.earlier) <= EARLIER_ROUNDS
    assert all(len(one.items) <= EARLIER_ITEMS for one in report.earlier)
    assert all(item.label for item in report.earlier[0].items)


def test_money_follows_the_studys_prices(study):
    report = gather_report(study, quick=True)
    by_name = {cost.name: cost for cost in report.money.costs}
    assert by_name["labels"].amount == 12 * 0.5
    assert by_name["select"].amount == 0.0
    stored = by_name["embeddings stored, a month"]
    dim = study.open_store().table(study.encoder_id()).dim
    width = np.dtype(study.open_store().table(study.encoder_id()).dtype).itemsize
    assert stored.amount == pytest.approx(report.pool_size * dim * width / 1e9 * 1000.0)
    assert report.money.total == pytest.approx(6.0 + stored.amount)


def test_every_verdict_of_the_rounds_is_shown(study):
    shown = gather_report(study, quick=True).refreshes
    receipts = [done.receipt["refresh"] for done in read_rounds(study)]
    verdicts = [entry["verdict"] for entry in receipts if entry["verdict"] is not None]
    assert [one.reason for one in shown.judgements] == [v["reason"] for v in verdicts]
    assert [one.labels for one in shown.judgements] == [6, 12]
    assert shown.mode == study.config.refresh.mode


def test_a_refresh_inside_a_round_counts_once(tmp_path):
    def receipt(done):
        return SimpleNamespace(
            number=1,
            receipt={"refresh": {"done": done, "verdict": None}, "timings_s": {"refresh": 5}},
        )

    record = {"seconds": {"finetune": 4.0, "embed": 1.0}, "labels": {"count": 9}, "forced": True}
    made = [Refresh(number=1, folder=tmp_path, encoder_id="e", record=record)]
    inside = read_stages({}, [receipt(1)], made, {})
    assert sum(stage.seconds for stage in inside) == 5.0
    apart = read_stages({}, [receipt(None)], made, {})
    assert [(s.name, s.seconds) for s in apart[1:]] == [
        ("refresh: fine-tune", 4.0),
        ("refresh: embed", 1.0),
    ]
    (done,) = read_history("ask", [], made).done
    assert (done.labels, done.forced, done.finetune_s) == (9, True, 4.0)
    assert read_history("ask", [], []) is None


def test_the_sample_prefers_the_newest_picks():
    names = tuple(f"{i:03d}" for i in range(200))
    pool = Pool.create(ids=names, uris=names, digests=np.zeros((200, 32), dtype=np.uint8))

    def done(*names):
        return SimpleNamespace(picks=[SimpleNamespace(id=name) for name in names])

    rounds = [done("000", "001"), done("150", "gone")]
    rows = sample_rows(pool, rounds, {"010": "a"}, seed=1, size=20)
    assert len(rows) == 20
    assert {0, 1, 150, 10} <= set(rows.tolist())
    assert (np.diff(rows) > 0).all()
    assert set(sample_rows(pool, rounds, {}, seed=1, size=1).tolist()) <= {0, 1, 150}


def test_the_projection_parts_groups_and_repeats():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 40)
    x = (rng.normal(size=(80, 12)) + 8.0 * group[:, None]).astype(np.float32)
    for quick, name in ((True, "PCA"), (False, "t-SNE")):
        y, method = project(x, seed=3, quick=quick)
        assert method == name
        assert np.array_equal(project(x, seed=3, quick=quick)[0], y)
        middle = np.stack([y[group == 0].mean(axis=0), y[group == 1].mean(axis=0)])
        own = np.linalg.norm(y - middle[group], axis=1)
        other = np.linalg.norm(y - middle[1 - group], axis=1)
        assert (own < other).mean() > 0.95


def test_the_projection_of_few_or_flat_items():
    for shape in ((4, 1), (3, 8), (60, 8)):
        y, method = project(np.zeros(shape, dtype=np.float32), seed=0, quick=False)
        assert y.shape == (shape[0], 2)
        assert method == "PCA"
        assert np.isfinite(y).all()


def test_the_command_exports_figures_and_tables(study, tmp_path, capsys):
    folder = tmp_path / "figures"
    page = tmp_path / "r.html"
    command = ["report", str(study.path), "-o", str(page), "--export", str(folder), "--quick"]
    assert run([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["export"] == str(folder)
    assert said["bytes"] == page.stat().st_size < 2_000_000
    names = {path.name for path in folder.iterdir()}
    assert {"map-by-round.svg", "map-by-class.svg", "map.csv", "money.csv", "time.csv"} <= names
    with (folder / "judgements.csv").open(newline="") as stream:
        assert [row["round"] for row in csv.DictReader(stream)] == ["1", "2"]
