"""Names of encoders: what they parse to, and what their errors say."""

import subprocess
import sys
from pathlib import Path

import pytest

from svp.encoders.catalog import families, models
from svp.encoders.spec import parse_spec
from svp.errors import InputError


def test_families_and_parts(tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.touch()
    spec = parse_spec("open_clip:ViT-B-32/openai")
    assert (spec.family, spec.model, spec.pretrained, spec.path) == (
        "open_clip",
        "ViT-B-32",
        "openai",
        None,
    )
    spec = parse_spec(f"open_clip:ViT-L-14/laion2b_s32b_b82k@{weights}")
    assert (spec.model, spec.pretrained, spec.path) == ("ViT-L-14", "laion2b_s32b_b82k", weights)
    spec = parse_spec(f" timm:resnet50.a1_in1k@{weights} ")
    assert (spec.model, spec.path, spec.branch) == ("resnet50.a1_in1k", weights, None)
    spec = parse_spec(f"byol:resnet50@{weights}#online")
    assert (spec.model, spec.path, spec.branch) == ("resnet50", weights, "online")
    assert parse_spec(str(tmp_path)).family == "folder"
    assert parse_spec(f"open_clip:@{tmp_path}").path == tmp_path


@pytest.mark.parametrize(
    "name", ["a@b.pt", "x#1.pth", "run#online", "c:d e.pth", "ä ß.pth.tar", "a@b#target@c"]
)
def test_strange_file_names(tmp_path: Path, name: str) -> None:
    weights = tmp_path / name
    weights.touch()
    assert parse_spec(f"byol:resnet18@{weights}").path == weights
    assert parse_spec(f"byol:resnet18@{weights}").branch is None
    spec = parse_spec(f"byol:resnet18@{weights}#target")
    assert (spec.path, spec.branch) == (weights, "target")


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert parse_spec("timm:resnet18@~/w.pt").path == tmp_path / "w.pt"
    assert parse_spec("timm:resnet18@w.pt").path == Path("w.pt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be named"),
        ("clip:ViT-B-32", "open_clip"),
        ("resnet50", "FAMILY:MODEL"),
        ("/no/such/dir", "existing directory"),
        ("timm:", "name its model"),
        ("timm:resnet18@", "must follow '@'"),
        ("timm:resnet18@/no/such.pt", "must exist"),
        ("open_clip:ViT-B-32/", "must follow '/'"),
        ("byol:resnet50", "byol:ARCH@PATH"),
        ("byol:resnet50@/no/x.pth#momentum", "online or target"),
    ],
)
def test_errors_say_what_to_do(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_spec(text)
    assert "\n" not in str(caught.value)


def test_parsing_imports_no_torch() -> None:
    code = (
        "import sys; from svp.encoders.spec import parse_spec; from svp.encoders import catalog; "
        "parse_spec('timm:x'); catalog.families(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_catalog() -> None:
    assert [family.name for family in families()][:4] == ["open_clip", "timm", "byol", "folder"]
    assert "ViT-B-32" in models("open_clip")
    assert "resnet50" in models("timm")
    assert "resnet50" in models("byol")
    with pytest.raises(InputError, match="timm"):
        models("tim")
