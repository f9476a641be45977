"""Proxies of a study: recipes by name, views of unlabelled images, warm starts, and replays."""

import dataclasses
from pathlib import Path

import pytest
from study_fixtures import config_of, truth_of, write_encoder, write_images, write_labels

from svp.errors import InputError
from svp.proxies import LinearConfig, NetworkConfig, NetworkProxy, load_proxy, proxy_preset
from svp.study.cells import SimulationConfig
from svp.study.config import EncoderSection, ProxySection
from svp.study.embedding import embed_study
from svp.study.labels import import_labels
from svp.study.options import build_proxy_config
from svp.study.replay import replay
from svp.study.rounds import select
from svp.study.simulate import simulate
from svp.study.study import Study

FLEXMATCH = {"trainer": "flexmatch", "epochs": 3, "batch_size": 8, "lr": 0.01}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proxies")
    write_images(folder / "images", train=8, test=3)
    write_encoder(folder / "encoder")
    embed_study(_study(folder, "first", ProxySection()))
    return folder


def _study(
    root: Path, name: str, proxy: ProxySection, views: tuple[str, ...] = ("weak:2", "strong:1")
) -> Study:
    encoder = EncoderSection(
        spec=str(root / "encoder"), batch_size=64, workers=1, views=("eval", *views)
    )
    return Study.create(root / name, config_of(root, encoder=encoder, proxy=proxy))


def _label(study: Study, folder: Path) -> None:
    truth = truth_of(study)
    waiting = [pick.id for pick in select(study, 6).picks]
    import_labels(study, write_labels(folder, {key: truth[key] for key in waiting}))


@pytest.mark.parametrize(
    "options", [FLEXMATCH, {"warm_start": True, "l2": "auto"}], ids=["flexmatch", "warm"]
)
def test_rounds_use_the_proxy_and_replay(root: Path, tmp_path: Path, options: dict) -> None:
    name = str(options.get("trainer", "warm"))
    study = _study(root, name, ProxySection(kind="linear", options=options))
    embed_study(study)
    for number in range(2):
        _label(study, tmp_path / f"{number}.csv")
    last = select(study, 3)
    assert last.receipt["proxy"]["fitted"]
    proxy = load_proxy(last.folder / "proxy.safetensors")
    if name == "flexmatch":
        assert isinstance(proxy, NetworkProxy)
        assert proxy.config == NetworkConfig(**FLEXMATCH)
    else:
        assert proxy.report.l2 is not None
    assert replay(study, last.number).identical


def test_views_must_be_named_and_embedded(root: Path, tmp_path: Path) -> None:
    proxy = ProxySection(kind="linear", options=FLEXMATCH)
    study = _study(root, "no-views", proxy, views=("weak:1",))
    embed_study(study)
    with pytest.raises(InputError, match=r"encoder\.views must name weak and strong views"):
        select(study, 6)
    study = _study(root, "not-embedded", proxy, views=("weak:1", "strong:3"))
    embed_study(_study(root, "plain", ProxySection(), views=()))
    (study.path / "encoder.json").write_text((root / "plain" / "encoder.json").read_text())
    with pytest.raises(InputError, match="view strong-1"):
        select(study, 6)


def test_simulations_train_on_views_and_start_warm(root: Path) -> None:
    config = SimulationConfig(strategies=("margin",), seeds=(0,), batch=6, rounds=2)
    points = {}
    for name, options in (
        ("sim-flexmatch", FLEXMATCH),
        ("sim-cold", {"tolerance": 1e-6}),
        ("sim-warm", {"tolerance": 1e-6, "warm_start": True}),
    ):
        study = _study(root, name, ProxySection(kind="linear", options=options))
        embed_study(study)
        done = simulate(study, config)
        points[name] = [point.mean["test_acc"] for point in done.points]
    assert len(points["sim-flexmatch"]) == 6
    assert points["sim-warm"] == pytest.approx(points["sim-cold"], abs=0.12)


def test_presets_are_amended_by_other_keys() -> None:
    name = "labelbench-cifar10-flexmatch-linear"
    section = ProxySection(kind="linear", options={"preset": name, "epochs": 7})
    recipe = proxy_preset(name)
    assert isinstance(recipe, NetworkConfig)
    assert build_proxy_config(section) == dataclasses.replace(recipe, epochs=7)
    with pytest.raises(InputError, match="kind must be linear"):
        build_proxy_config(ProxySection(kind="mlp", options={"preset": name}))
    with pytest.raises(InputError, match=r"proxy\.epoch"):
        build_proxy_config(ProxySection(kind="linear", options={"preset": name, "epoch": 7}))
    automatic = ProxySection(kind="linear", options={"l2": "auto"})
    assert build_proxy_config(automatic) == LinearConfig(l2="auto")
