"""The shape of the house: who may import whom, what starts fast, what is called what."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("svp", "feature_store", "pipelines")
MODULES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


def test_import_contracts_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module", ["svp", "svp.cli.app", "feature_store", "pipelines", "svp.study"]
)
def test_import_needs_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_modules_are_small_and_named_after_a_noun():
    banned = re.compile(r"(utils?|helpers?|common|misc|skeleton|.*_impl)\.py$")
    assert [p for p in MODULES if banned.match(p.name)] == []
    long = {
        str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 400
    }
    assert long == {}


def test_every_module_says_what_it_is():
    silent = [
        str(p.relative_to(ROOT))
        for p in MODULES
        if p.read_text().strip() and not p.read_text().lstrip().startswith('"""')
    ]
    assert silent == []


def test_no_torch_load_of_pickles():
    load = re.compile(r"(?<!safetensors\.)torch\.load\([^)]*\)", re.DOTALL)
    unsafe = [
        str(p.relative_to(ROOT))
        for p in MODULES
        for call in load.findall(p.read_text())
        if "weights_only=True" not in call
    ]
    assert unsafe == []
    pickles = re.compile(r"pickle\.(loads?|Unpickler)\b|allow_pickle=True")
    assert [p for p in MODULES if pickles.search(p.read_text())] == []
