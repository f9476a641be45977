"""Strategies that compare stored views, from the study's configuration to a replayed round."""

import dataclasses
from pathlib import Path

import pytest

from svp.errors import InputError
from svp.study.cells import SimulationConfig
from svp.study.config import EncoderSection, StrategySection
from svp.study.embedding import embed_study
from svp.study.labels import import_labels
from svp.study.replay import replay
from svp.study.rounds import select
from svp.study.simulate import simulate
from svp.study.study import Study
from tests.svp.study_fixtures import config_of, truth_of, write_labels, write_material


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    write_material(folder, train=8, test=4)
    return folder


def _study(root: Path, name: str, views: tuple[str, ...]) -> Study:
    section = EncoderSection(spec=str(root / "encoder"), batch_size=64, workers=1, views=views)
    strategy = StrategySection(name="ssl_consistency", first_round="random")
    return Study.create(root / name, config_of(root, encoder=section, strategy=strategy))


def test_a_strategy_reads_the_views_that_the_study_names(root: Path) -> None:
    study = _study(root, "with", ("eval", "weak:2"))
    embed_study(study)
    first = select(study, 6)
    truth = truth_of(study)
    import_labels(
        study, write_labels(root / "a.csv", {pick.id: truth[pick.id] for pick in first.picks})
    )
    second = select(study, 4)
    assert second.receipt["strategy"]["name"] == "ssl_consistency"
    assert any(pick.utility > 0 for pick in second.picks)
    assert replay(study, 1).identical
    done = simulate(
        study,
        SimulationConfig(strategies=("ssl_consistency",), seeds=(0,), batch=5, rounds=1),
    )
    assert {total.strategy for total in done.totals} >= {"ssl_consistency"}


def test_without_views_the_next_step_is_named(root: Path) -> None:
    study = _study(root, "without", ("eval",))
    with pytest.raises(InputError, match="must name stored views"):
        select(study, 4)
    named = dataclasses.replace(
        study,
        config=dataclasses.replace(
            study.config,
            encoder=dataclasses.replace(study.config.encoder, views=("eval", "weak:7")),
        ),
    )
    with pytest.raises(InputError, match="svp embed"):
        select(named, 4)
