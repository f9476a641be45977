import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_fixtures import config_of, write_encoder, write_images

from svp.errors import InputError
from svp.study.config import (
    DataSection,
    EncoderSection,
    ProxySection,
    StoreSection,
    StrategySection,
    StudyConfig,
    parse_study,
    read_study_toml,
    write_study_toml,
)
from svp.study.options import build_finetune_config, build_proxy_config, check_options
from svp.study.study import Study
from svp.study.tables import from_table

MINIMAL = {
    "name": "birds",
    "data": {"source": ["images"]},
    "encoder": {"spec": "timm:resnet50"},
    "store": {"url": "store"},
}


def _with(dotted, value):
    return parse_study(MINIMAL, {dotted: value})


def test_minimal_file_gets_defaults():
    config = parse_study(MINIMAL)
    assert config.seed == 0
    assert config.encoder.precision == "fp32"
    assert config.strategy == StrategySection(name="margin", first_round="kmeans")
    assert config.proxy.kind == "linear"


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("encoder.precison", "bf16", r"encoder\.precison .*Did you mean precision\?"),
        ("sede", 1, r"^sede .*Did you mean seed\?"),
        ("strategy.param", {}, r"strategy\.param .*params"),
        ("store.urls", "x", r"store\.urls .*url"),
        ("seed", "1", r"seed must be a whole number. Got '1'"),
        ("seed", True, r"seed must be a whole number. Got True"),
        ("seed", -1, r"seed must be 0 or more"),
        ("data.source", "images", r"data\.source must be a list"),
        ("data.source", [1], r"data\.source\[0\] must be text"),
        ("data.source", [], r"data\.source must name at least one"),
        ("encoder.batch_size", -1, r"encoder\.batch_size must be 0"),
        ("encoder.batch_size", 2.0, r"encoder\.batch_size must be a whole number"),
        ("encoder.precision", "int8", r"encoder\.precision must be one of fp32, bf16, fp16"),
        ("encoder", "timm:resnet50", r"encoder must be a table"),
        ("proxy.kind", "forest", r"proxy\.kind must be one of linear, mlp"),
        ("name", None, r"name must be text"),
    ],
)
def test_mistakes_are_named_by_path(dotted, value, message):
    with pytest.raises(InputError, match=message):
        _with(dotted, value)


def test_missing_key_is_named():
    table = {key: value for key, value in MINIMAL.items() if key != "store"}
    with pytest.raises(InputError, match="store must be given"):
        parse_study(table)
    with pytest.raises(InputError, match=r"encoder\.spec must be given"):
        parse_study({**MINIMAL, "encoder": {}})


def test_options_of_other_stages_are_checked_by_their_owners():
    check_options(parse_study(MINIMAL))
    cases = {
        "proxy.l3": (0.1, r"proxy\.l3 .*l2"),
        "proxy.l2": (-1.0, r"proxy: l2 must be positive"),
        "strategy.name": ("margn", "margin"),
        "strategy.params": ({"wight": 1}, "wight"),
        "finetune.lambdau": (1.0, r"finetune\.lambdau .*lambda_u"),
        "finetune.batch_size": ("8", r"finetune\.batch_size must be a whole number"),
        "finetune.preset": ("smal", "small"),
        "finetune.batch_size ": (8, "batch_size"),
    }
    for dotted, (value, message) in cases.items():
        with pytest.raises(InputError, match=message):
            check_options(_with(dotted, value))


def test_proxy_and_finetune_options_reach_their_types():
    from svp.proxies import LinearConfig, MLPConfig

    assert build_proxy_config(_with("proxy.l2", 1).proxy) == LinearConfig(l2=1.0)
    mlp = parse_study({**MINIMAL, "proxy": {"kind": "mlp", "hidden": 16}})
    assert build_proxy_config(mlp.proxy) == MLPConfig(hidden=16)
    tuned = build_finetune_config({"epochs": 3, "milestones": [0.5], "clip_norm": 1})
    assert (tuned.steps, tuned.epochs, tuned.milestones, tuned.clip_norm) == (None, 3, (0.5,), 1.0)
    recipe = build_finetune_config({"preset": "labelbench-cifar10", "steps": 5})
    assert (recipe.steps, recipe.epochs, recipe.optimiser) == (5, None, "adamw")


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
scalars = st.one_of(texts, st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False))


@settings(deadline=None)
@given(
    name=texts,
    seed=st.integers(0, 2**62),
    source=st.lists(texts, min_size=1, max_size=3),
    root=st.none() | texts,
    options=st.dictionaries(texts.filter(lambda key: key != "kind"), scalars, max_size=3),
    params=st.dictionaries(texts, scalars | st.lists(scalars, max_size=2), max_size=3),
)
def test_written_files_read_back_equal(name, seed, source, root, options, params):
    config = StudyConfig(
        name=name,
        seed=seed,
        data=DataSection(source=tuple(source), root=root),
        encoder=EncoderSection(spec="timm:resnet50", batch_size=3),
        store=StoreSection(url="store"),
        proxy=ProxySection(kind="mlp", options=options),
        strategy=StrategySection(name="badge", params=params),
    )
    assert parse_study(tomllib.loads(write_study_toml(config))) == config


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("name = \n")
    with pytest.raises(InputError, match=r"study\.toml must be TOML.*line 1"):
        read_study_toml(path)
    path.write_text('name = "x"\nsed = 1\n')
    with pytest.raises(InputError, match=r"study\.toml: sed "):
        read_study_toml(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Everything:
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[str, ...] = ()
    maybe: int | None = None
    kind: Literal["a", 1] = "a"
    where: dict[str, int] = dataclasses.field(default_factory=dict)


def test_tables_convert_by_type():
    made = from_table(
        _Everything, {"pair": [1, 2], "many": ["x"], "maybe": 3, "kind": 1, "where": {"k": 1}}
    )
    assert made == _Everything(pair=(1, 2.0), many=("x",), maybe=3, kind=1, where={"k": 1})
    for wrong, message in (
        ({"pair": [1]}, "a list of 2"),
        ({"kind": True}, "one of a, 1"),
        ({"where": {"k": "v"}}, r"where\.k must be a whole number"),
        ({"maybe": "3"}, "maybe must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            from_table(_Everything, wrong)


def _config(root: Path, **changes: object) -> StudyConfig:
    (root / "images").mkdir(exist_ok=True)
    fields = {
        "name": "birds",
        "data": DataSection(source=(str(root / "images"),)),
        "encoder": EncoderSection(spec="timm:resnet50"),
        "store": StoreSection(url=str(root / "store")),
    }
    return StudyConfig(**{**fields, **changes})


def test_create_and_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = _config(
        Path(),
        encoder=EncoderSection(spec="byol:resnet8@weights#1.pth#target"),
    )
    Path("weights#1.pth").touch()
    study = Study.create("birds", config)
    assert study.config.data.source == ("../images",)
    assert study.config.store.url == "../store"
    assert study.config.encoder.spec == "byol:resnet8@../weights#1.pth#target"
    monkeypatch.chdir("/")
    study = Study.open(tmp_path / "birds")
    assert Path(study.store_url).resolve() == tmp_path / "store"
    spec = study.encoder_spec.removeprefix("byol:resnet8@").removesuffix("#target")
    assert Path(spec).samefile(tmp_path / "weights#1.pth")
    assert Study.open(tmp_path / "birds" / "study.toml").config == study.config
    assert Study.open(tmp_path / "birds", {"strategy.name": "random"}).config.strategy.name == (
        "random"
    )


def test_paths_far_away_are_written_absolute(tmp_path):
    far = tmp_path / "a" / "b" / "birds"
    study = Study.create(far, _config(tmp_path))
    assert study.config.data.source == (str(tmp_path / "images"),)


def test_create_refuses_to_overwrite(tmp_path):
    Study.create(tmp_path / "birds", _config(tmp_path))
    before = (tmp_path / "birds" / "study.toml").read_bytes()
    with pytest.raises(InputError, match="folder of its own"):
        Study.create(tmp_path / "birds", _config(tmp_path, name="other"))
    assert (tmp_path / "birds" / "study.toml").read_bytes() == before


def test_create_checks_before_it_writes(tmp_path):
    missing = _config(tmp_path, data=DataSection(source=(str(tmp_path / "imges"),)))
    with pytest.raises(InputError, match=r"exists. Got .*imges"):
        Study.create(tmp_path / "birds", missing)
    with pytest.raises(InputError, match="family"):
        Study.create(
            tmp_path / "birds", _config(tmp_path, encoder=EncoderSection(spec="tim:resnet50"))
        )
    assert not (tmp_path / "birds").exists()


def test_a_missing_study_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"svp init .*nothing --source"):
        Study.open(tmp_path / "nothing")


def test_the_study_layer_imports_no_torch():
    modules = "config tables study labels record rounds choice features learner cells simulate "
    modules += "curves embedding finetune options"
    code = "; ".join(f"import svp.study.{name}" for name in modules.split())
    code += "; import svp.metrics, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_environment_names_the_store_of_every_command(tmp_path, monkeypatch):
    write_images(tmp_path / "images", train=1, test=0)
    write_encoder(tmp_path / "encoder")
    study = Study.create(tmp_path / "study", config_of(tmp_path))
    assert Path(study.store_url).resolve() == tmp_path / "store"
    monkeypatch.setenv("SVP_STORE", str(tmp_path / "other"))
    assert Path(Study.open(tmp_path / "study").store_url) == tmp_path / "other"
    named = Study.open(tmp_path / "study", {"store.url": str(tmp_path / "third")})
    assert Path(named.store_url) == tmp_path / "third"
