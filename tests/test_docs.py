"""The documents run: every block, in order, on a few small images in an empty folder.

Blocks marked `bash` run by `bash -e`, blocks marked `python` are executed in one namespace per
document; `norun` and `text` are only read.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from svp.cli.app import app
from svp.demo import write_digits

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
RUN = (
    "images-to-model.md",
    "airflow.md",
    "commands.md",
    "python.md",
    "architecture.md",
    "strategies.md",
    "metrics.md",
    "labelling.md",
    "shared-store.md",
    "coming-from.md",
)
COMMON = ("--json", "--result-file")
IMAGES_OF_A_CLASS = {"train": 18, "test": 4}


class Block(NamedTuple):
    language: str
    runs: bool
    text: str
    line: int


def blocks(document):
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [
        Block(match[1], "norun" not in match[2], match[3], text.count("\n", 0, match.start()) + 1)
        for match in found
    ]


def walk(command, name="svp"):
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {word}")


COMMANDS = dict(walk(typer.main.get_command(app)))
LEAVES = {name: c for name, c in COMMANDS.items() if not getattr(c, "commands", None)}


def long_options(command):
    options = [o for p in command.params for o in (*p.opts, *p.secondary_opts)]
    return {option for option in options if option.startswith("--")}


def sections(document):
    parts = re.split(r"^## (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "photos"
    write_digits(folder)
    for split, kept in IMAGES_OF_A_CLASS.items():
        for label in (folder / split).iterdir():
            for path in sorted(label.iterdir())[kept:]:
                path.unlink()
    return folder


@pytest.fixture(scope="module")
def programs():
    # Not under tmp_path: the address of a socket has at most about 100 characters.
    with tempfile.TemporaryDirectory() as folder:
        server = str(ROOT / "tests" / "forking_svp.py")
        address = f"{folder}/socket"
        script = Path(folder) / "svp"
        words = shlex.join([sys.executable, "-IS", server, address])
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        script.chmod(0o755)
        with subprocess.Popen(
            [sys.executable, server, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            yield folder
            process.stdin.close()


@pytest.fixture
def workplace(digits, programs, tmp_path, monkeypatch):
    shutil.copytree(digits, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{beside}{os.pathsep}{os.environ['PATH']}")
    for name in ("SVP_STORE", "SVP_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run_document(document):
    namespace = {"__name__": "__main__"}
    for block in blocks(document):
        if block.language == "bash" and block.runs:
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", block.text],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            where = f"{document.name}:{block.line}"
            assert done.returncode == 0, f"{where}\n{block.text}\n{done.stdout}\n{done.stderr}"
        elif block.language == "python" and block.runs:
            source = "\n" * block.line + block.text
            exec(compile(source, str(document), "exec"), namespace)


@pytest.mark.parametrize("name", [*RUN, pytest.param("dask.md", marks=pytest.mark.slow)])
def test_every_block_runs(name, workplace):
    run_document(ROOT / "docs" / name)


def test_the_readme_runs_from_python(workplace):
    done = subprocess.run(
        ["bash", "-e", "-c",
         "svp pretrain --source photos --output encoder --image-size 8 --epochs 1\n"
         "svp embed --source photos --encoder ./encoder --store store"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    namespace = {}
    for block in blocks(README):
        if block.language == "python":
            exec(compile(block.text, "README.md", "exec"), namespace)
    assert namespace["x"].shape[0] == len(namespace["pool"])


def svp_lines():
    for document in (README, *DOCS):
        for block in blocks(document):
            if block.language == "bash":
                joined = block.text.replace("\\\n", " ")
                for line in joined.splitlines():
                    if line.lstrip().startswith("svp "):
                        yield pytest.param(line.strip(), id=f"{document.name}: {line.strip()}")


@pytest.mark.parametrize("line", list(svp_lines()))
def test_every_line_is_a_valid_command(line):
    # Not the shell's own comments: a spec may hold a '#' inside a word.
    words = shlex.split(re.split(r"\s(?:[|>]|2>|#)\s?", line)[0])[1:]
    name = "svp"
    while words and f"{name} {words[0]}" in COMMANDS:
        name = f"{name} {words.pop(0)}"
    # Parsed and converted, not run; an unknown option or a missing one raises.
    COMMANDS[name].make_context(name, words)


def test_commands_md_has_every_command_and_option():
    by_command = sections(ROOT / "docs" / "commands.md")
    missing = []
    for name, command in LEAVES.items():
        if name not in by_command:
            missing.append(name)
            continue
        missing += [
            f"{name} {option}"
            for option in sorted(long_options(command) - {*COMMON, "--help"})
            if f"`{option}" not in by_command[name]
        ]
    assert missing == []


def test_commands_md_has_no_command_or_option_that_does_not_exist():
    by_command = sections(ROOT / "docs" / "commands.md")
    assert {name for name in by_command if name.startswith("svp ")} == set(LEAVES)
    for name, command in LEAVES.items():
        rows = re.findall(r"^\| `(--[a-z-]+)", by_command[name], flags=re.MULTILINE)
        assert set(rows) <= long_options(command), name


def test_commands_md_names_every_schema_exit_code_and_variable():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "svp" / "cli").glob("*.py")]
    schemas = {found for source in sources for found in re.findall(r'"(svp\.[a-z.]+/\d+)"', source)}
    assert {schema for schema in schemas if f"`{schema}`" not in text} == set()
    for code in (0, 1, 2, 3, 4, 5, 75, 130, 141, 143):
        assert re.search(rf"^\| {code} \|", text, flags=re.MULTILINE), code
    for name in ("SVP_STORE", "SVP_DEVICE", "SVP_CACHE_DIR", "SVP_OFFLINE", "HF_HUB_OFFLINE"):
        assert f"`{name}`" in text


@pytest.mark.parametrize("document", [README, *DOCS], ids=lambda path: path.name)
def test_documents_name_no_absolute_path_and_no_dead_link(document):
    text = document.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.<:/*)])/(?:home|root|work|tmp|usr|mnt|data|Users)\b\S*", text) == []
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        if "docs/images/" in link or link.startswith("images/") or "cifar10" in link:
            continue  # made by a run, and checked where they are made
        assert (document.parent / link).exists(), link
