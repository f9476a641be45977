"""The command line as its users meet it: what it prints, where, and with which exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from study_fixtures import write_encoder, write_images

from svp.cli import run
from svp.cli.app import app

STUDY = ("--source", "images", "--encoder", "encoder", "--store", "store")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Images, an encoder and an embedded study, copied for every test."""
    root = tmp_path_factory.mktemp("material")
    write_images(root / "images", train=8, test=2)
    write_encoder(root / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        assert run(["init", "study", *STUDY, "--strategy", "margin"]) == 0
        assert run(["embed", "study"]) == 0
    return root


@pytest.fixture
def here(material, tmp_path, monkeypatch):
    shutil.copytree(material, tmp_path / "w", symlinks=True)
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def svp(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def done(svp) -> Callable[..., dict[str, Any]]:
    """Run a command that must succeed with --json; return the object."""

    def call(*arguments: object) -> dict[str, Any]:
        code, out, err = svp(*arguments, "--json")
        assert code == 0, err
        assert out.count("\n") == 1, "the object is all there is on stdout"
        document = json.loads(out)
        assert document["schema"].startswith("svp.")
        return document

    return call


@pytest.fixture
def refused(svp) -> Callable[..., str]:
    """Run a command that must fail with one line; return the line."""

    def call(code: int, *arguments: object) -> str:
        before = _tree(Path.cwd())
        found, out, err = svp(*arguments)
        assert found == code, err
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("svp: ")
        assert "Traceback" not in err
        assert _tree(Path.cwd()) == before, "a refused command leaves nothing behind"
        return err

    return call


def _tree(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.stat().st_size
        for path in root.rglob("*")
        if "cache" not in path.parts and path.is_file()
    }


def _process(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "svp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _commands(command: Any, path: tuple[str, ...] = ()) -> "list[tuple[tuple[str, ...], Any]]":
    found = [(path, command)]
    for name, inner in getattr(command, "commands", {}).items():
        found += _commands(inner, (*path, name))
    return found


# Help


@pytest.mark.parametrize("path", [path for path, _ in _commands(typer.main.get_command(app))])
def test_every_command_explains_itself_by_an_example(path, svp):
    code, out, _ = svp(*path, "--help")
    assert code == 0
    examples = [line for line in out.splitlines() if line.startswith(("    svp ", "  svp "))]
    assert examples, out
    if path:
        assert any(" ".join(path) in line for line in examples)


def test_every_result_can_be_json_and_a_file():
    without = [
        path
        for path, command in _commands(typer.main.get_command(app))
        if not getattr(command, "commands", {})
        and not {"as_json", "result_file"} <= {parameter.name for parameter in command.params}
    ]
    assert without == []


def test_help_imports_no_tensor_library():
    code = (
        "import sys; from svp.cli import run; assert run(['--help']) == 0; "
        "print(sorted({'torch', 'numpy', 'pyarrow', 'zarr', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_a_command_the_help_is_readable(svp):
    for arguments in ((), ("labels",), ("store",)):
        code, out, err = svp(*arguments)
        assert (code, out) == (2, "")
        assert "Commands:\n" in err


def test_version(svp):
    code, out, _ = svp("--version")
    assert code == 0
    assert out.startswith("svp ")


# The way through


@pytest.mark.parametrize("other", [("--store", "elsewhere"), ("--precision", "bf16")])
def test_embedding_a_study_elsewhere_would_be_lost_on_it(here, done, refused, other):
    done("init", "s", *STUDY)
    assert "study.toml" in refused(3, "embed", "s", *other)
    assert not (here / "elsewhere").exists()


def test_from_images_to_a_report(here, svp, done):
    own = (*STUDY[:-1], "own", "--strategy", "margin")
    assert done("init", "s", *own)["file"] == "s/study.toml"
    first = done("embed", "s", "--store", "own")["result"]
    assert (first["embedded"], first["reused"], first["failed_items"]) == (30, 0, 0)
    before = _tree(here / "own")
    again = done("embed", "s")["result"]
    assert (again["embedded"], again["reused"], again["segments"]) == (0, 30, [])
    assert _tree(here / "own") == before

    picked = done("select", "s", "-n", 9)
    assert (picked["round"], picked["reopened"], len(picked["ids"])) == (0, False, 9)
    assert (here / picked["selection"]).is_file()
    assert (here / picked["receipt"]).is_file()
    same = done("select", "s", "-n", 9)
    assert same == {**picked, "reopened": True}

    assert done("labels", "export", "s", "todo.csv", "--waiting")["rows"] == 9
    header, *rows = (here / "todo.csv").read_text().splitlines()
    assert header.startswith("id,uri,label,")
    answers = [f"{row.split(',')[0]},{row.split('/')[1]}" for row in rows]
    (here / "answers.csv").write_text("\n".join(["id,label", *answers]) + "\n")
    imported = done("labels", "import", "s", "answers.csv")["result"]
    assert (imported["new"], imported["labelled"]) == (9, 9)
    imported = done("labels", "import", "s", "answers.csv")["result"]
    assert (imported["new"], imported["unchanged"], imported["file"]) == (0, 9, None)
    assert done("labels", "export", "s", "labels.csv")["rows"] == 9
    assert done("labels", "export", "s", "todo.csv", "--waiting")["rows"] == 0

    following = done("select", "s", "-n", 3)
    assert (following["round"], following["strategy"]["name"]) == (1, "margin")
    assert not set(following["ids"]) & set(picked["ids"])

    quick = ("--set", "finetune.batch_size=8", "--set", "finetune.uratio=1")
    trained = done("finetune", "s", "--method", "supervised", "--steps", 2, *quick)
    assert 0 <= trained["metrics"]["evaluation"]["accuracy"] <= 1
    assert (here / "s/model/predictions.parquet").is_file()
    arguments = ("simulate", "s", "-n", 3, "--rounds", 1, "--seeds", 2, "--strategy", "entropy")
    simulated = done(*arguments)["result"]
    assert (simulated["cells"], simulated["reused"]) == (4, 0)
    assert done(*arguments)["result"]["reused"] == 4
    report = done("report", "s")
    assert (here / report["report"]).stat().st_size == report["bytes"]

    (table,) = done("store", "ls", "own")["tables"]
    assert (table["rows"], table["architecture"]) == (30, "backbone resnet8")
    shown = done("store", "show", "own", table["encoder"])
    assert (shown["id"], shown["failures"]) == (table["encoder"], [])
    assert done("store", "verify", "own")["problems"] == []
    code, out, err = svp("store", "ls", "own")
    assert (code, err) == (0, "")
    assert "{" not in out


def test_what_there_is_to_choose_from(svp, done):
    names = [one["name"] for one in done("strategies", "list")["strategies"]]
    assert [one["name"] for one in done("strategies")["strategies"]] == names
    assert {"margin", "badge", "random"} <= set(names)
    assert done("strategies", "show", "badge")["strategy"]["name"] == "badge"
    assert done("encoders") == done("encoders", "list")
    assert "resnet18" in done("encoders", "models", "byol")["models"]
    assert "version of torch" in done("doctor")["seen"]
    for arguments in (("strategies",), ("encoders",), ("doctor",)):
        code, out, err = svp(*arguments)
        assert (code, err) == (0, "")
        assert out


def test_a_result_file_holds_what_json_prints(here, svp):
    code, out, _ = svp("embed", "study", "--json", "--result-file", "new/result.json")
    assert code == 0
    assert json.loads((here / "new/result.json").read_text()) == json.loads(out)
    code, out, _ = svp("embed", "study", "--result-file", "new/result.json")
    assert code == 0
    assert out.startswith("Embedded 0 images, 30 were there already.")


def test_short_work_logs_nothing_but_its_result(here, svp):
    code, _, err = svp("embed", "--source", "images", "--encoder", "encoder", "--store", "other")
    assert (code, err) == (0, "")


def test_seeds_decide_selections(here, done):
    def picks(name: str, seed: int, strategy: str) -> list[str]:
        done("init", name, *STUDY, "--seed", seed, "--strategy", strategy)
        return [*_rounds(name, strategy)]

    def _rounds(name: str, strategy: str) -> list[str]:
        first = done("select", name, "-n", 6, "--strategy", "random")["ids"]
        rows = [f"{one},{one.split('/')[1]}" for one in first]
        Path("answers.csv").write_text("\n".join(["id,label", *rows]) + "\n")
        done("labels", "import", name, "answers.csv")
        return [*first, *done("select", name, "-n", 6, "--strategy", strategy)["ids"]]

    for strategy in ("random", "margin"):
        one, two, other = (
            picks(f"{strategy}-{name}", seed, strategy)
            for name, seed in (("a", 3), ("b", 3), ("c", 4))
        )
        assert one == two
        assert one != other


# Wrong input


def test_usage(here, refused):
    assert "--bogus" in refused(2, "select", "study", "--bogus")
    assert "selct" in refused(2, "selct")
    assert "--budget" in refused(2, "select", "study")
    assert "--budget" in refused(2, "select", "study", "-n", "many")
    assert "--seed" in refused(2, "select", "study", "-n", 2, "--seed", -1)
    assert "--batch-size" in refused(2, "embed", "study", "--batch-size", -1)
    assert "--proxy" in refused(2, "select", "study", "-n", 2, "--proxy", "forest")


def test_sources(here, refused):
    (here / "empty").mkdir()
    (here / "dup.csv").write_text("id,path\na,images/1.png\na,images/2.png\n")
    (here / "up.csv").write_text("id,path\na,../../etc/passwd\n")
    (here / "abs.csv").write_text("id,path\na,/etc/passwd\n")
    (here / "columns.csv").write_text("name,file\na,b\n")
    (here / "notes.txt").write_text("hello")
    rest = ("--encoder", "encoder", "--store", "new")
    assert "nothere" in refused(3, "init", "new", "--source", "nothere", *rest)
    for source, said in {
        "nothere": "must exist",
        "empty": "must hold images",
        "dup.csv": "unique",
        "up.csv": "inside",
        "abs.csv": "inside",
        "columns.csv": "columns id and path",
        "notes.txt": "folder or end in",
        "ftp://host/images": "s3://bucket/key",
    }.items():
        assert said in refused(3, "embed", "--source", source, *rest)
    assert "Got both" in refused(3, "embed", "study", "--source", "images")
    assert "neither" in refused(3, "embed")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tim:resnet18", "Near names: timm"),
        ("timm:resnet1x8", "resnet18"),
        ("timm:resnet18.nope", "Known: resnet18."),
        ("open_clip:ViT-B-23/openai", "ViT-B-32"),
        ("open_clip:ViT-B-32/opnai", "Near names: openai"),
        ("byol:resnt18@encoder/weights.safetensors", "resnet18"),
        ("encodr", "Near names: encoder"),
        ("images", "encoder.json"),
        ("timm:resnet18@nope.pt", "nope.pt"),
        # Weights of another architecture.
        ("byol:resnet50@encoder/weights.safetensors", "architecture"),
        ("timm:resnet18@encoder/weights.safetensors", "architecture"),
    ],
)
def test_encoders(here, refused, spec, said):
    arguments = ("--source", "images", "--encoder", spec, "--store", "new")
    assert said in refused(3, "embed", *arguments)


def test_a_wrong_encoder_is_refused_before_the_images_are_read(here, refused, monkeypatch):
    monkeypatch.setattr("svp.data.folder.FolderSource.list_items", None)
    refused(3, "embed", "--source", "images", "--encoder", "timm:resnet1x8", "--store", "new")
    refused(3, "embed", "study", "--max-failure-rate", "2")


def test_budgets(here, refused):
    assert "at least 1" in refused(3, "select", "study", "-n", 0)
    assert "at least 1" in refused(3, "select", "study", "-n", -5)
    assert "at most 24" in refused(3, "select", "study", "-n", 25)
    assert "at most 24" in refused(3, "simulate", "study", "-n", 5, "--rounds", 9, "--seeds", 1)


def test_an_exhausted_pool(here, done, refused):
    done("labels", "import", "study", "--from-source")
    assert "items left to label" in refused(3, "select", "study", "-n", 1)


def test_options(here, refused):
    assert "margin" in refused(3, "select", "study", "-n", 2, "--strategy", "margn")
    assert "badge" in refused(3, "strategies", "show", "badg")
    assert "timm" in refused(3, "encoders", "models", "tim")
    for device in ("gpu0", "meta"):
        assert "--device" in refused(3, "select", "study", "-n", 2, "--device", device)
    for shard in ("x", "3/2", "-1/2", "0/0", "²/3", "1"):
        assert "--shard" in refused(3, "embed", "study", "--shard", shard)
    for simulated in ("a/b", "margin/linear/²"):
        assert "--simulated" in refused(3, "finetune", "study", "--simulated", simulated)
    assert "KEY=VALUE" in refused(3, "select", "study", "-n", 2, "--set", "proxy")
    assert "proxy.l3" in refused(3, "select", "study", "-n", 2, "--set", "proxy.l3=1")
    assert "epochs" in refused(
        3, "pretrain", "--source", "images", "--output", "new", "--epochs", 0
    )


def test_studies(here, refused, done):
    for arguments in (("select", "no", "-n", 2), ("embed", "no"), ("report", "no")):
        assert "svp init no" in refused(3, *arguments)
    assert "folder of its own" in refused(3, "init", "study", *STUDY)
    done("init", "new", "--source", "images", "--encoder", "encoder", "--store", "none")
    for arguments in (("select", "new", "-n", 2), ("simulate", "new", "-n", 2)):
        assert "svp embed new" in refused(3, *arguments)
    assert "svp select" in refused(3, "labels", "export", "new", "todo.csv", "--waiting")
    assert "svp labels import" in refused(3, "finetune", "new")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace("seed =", "seeed ="), "Did you mean seed"),
        (lambda text: text + "\nbogus = 1\n", "tracking.bogus"),
        (lambda text: text.replace("[proxy]", "[proxy]\nl3 = 1"), "proxy.l3"),
        (lambda text: text.replace('"margin"', '"margn"'), "margin"),
        (lambda text: text.replace("seed = 0", "seed = -1"), "seed"),
        (lambda text: text + "x =", "must be TOML"),
    ],
)
def test_study_files(here, refused, edit, said):
    path = here / "study/study.toml"
    path.write_text(edit(path.read_text()))
    assert said in refused(3, "embed", "study")
    assert said in refused(3, "select", "study", "-n", 2)


def test_damaged_records(here, refused, done):
    record = here / "study/encoder.json"
    whole = record.read_text()
    record.write_text(whole[:50])
    assert "encoder.json" in refused(3, "select", "study", "-n", 2)
    record.write_text(whole)
    receipt = here / done("select", "study", "-n", 2)["receipt"]
    whole = receipt.read_text()
    for text in (whole[:50], "{}", "[]"):
        receipt.write_text(text)
        assert "rounds/000" in refused(3, "select", "study", "-n", 2)
        assert "rounds/000" in refused(3, "report", "study")
    receipt.write_text(whole)
    (here / "study/labels").mkdir()
    (here / "study/labels/mine.csv").write_text("id,label\nx,y\n")
    assert "mine.csv" in refused(3, "labels", "export", "study", "labels.csv")


def test_labels(here, refused):
    (here / "unknown.csv").write_text("id,label\nnope,red\n")
    (here / "columns.csv").write_text("name,label\nnope,red\n")
    (here / "empty.csv").write_text("")
    (here / "latin.csv").write_bytes(b"id,label\nx,\xff\n")
    (here / "junk.parquet").write_bytes(b"junk")
    for file, said in {
        "unknown.csv": "unknown",
        "columns.csv": "columns id and label",
        "empty.csv": "columns id and label",
        "latin.csv": "UTF-8",
        "junk.parquet": "Parquet",
        "nothere.csv": "must exist",
        "images": "must exist",
    }.items():
        assert said in refused(3, "labels", "import", "study", file)
    assert "neither" in refused(3, "labels", "import", "study")
    assert not (here / "study/labels").exists()


def test_paths_that_cannot_be_written(here, refused):
    assert "images" in refused(3, "labels", "export", "study", "images")
    assert "Is a directory: images." in refused(3, "report", "study", "--output", "images")
    for path in ("images", "encoder/encoder.json/x"):
        assert "--result-file" in refused(3, "report", "study", "--result-file", path)


def test_stores(here, refused):
    marker = here / "store/store.json"
    marker.write_text(marker.read_text().replace('"format":1', '"format":99'))
    for arguments in (
        ("embed", "study"),
        ("select", "study", "-n", 2),
        ("store", "ls", "store"),
        ("store", "verify", "store"),
    ):
        assert "Got 99" in refused(4, *arguments)
    assert "store.json" in refused(3, "store", "ls", "images")


def test_a_flipped_bit_is_found(here, svp):
    (chunk,) = here.glob("store/encoders/*/*/segments/*/embeddings/c.0.0")
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    code, out, err = svp("store", "verify", "store", "--json")
    assert (code, err) == (4, "")
    assert json.loads(out)["problems"]
    code, _, err = svp("select", "study", "-n", 2)
    assert code == 4
    assert err.count("\n") == 1


# Failed items


def test_failed_items_are_listed_with_their_reasons(here, svp):
    for number in range(3):
        (here / f"images/train/red/junk{number}.png").write_text("junk")
    arguments = ("embed", "--source", "images", "--encoder", "encoder", "--store", "new")
    code, out, err = svp(*arguments, "--json", "--result-file", "result.json")
    assert code == 5
    assert err.count("\n") == 1
    assert "train/red/junk0.png" in err
    result = json.loads(out)["result"]
    assert json.loads((here / "result.json").read_text())["result"] == result
    # The three are one image, and it is the share of images that may fail.
    assert (result["embedded"], result["failed"], result["failed_items"]) == (30, 1, 3)
    assert [one["id"] for one in result["failures"]] == [
        f"train/red/junk{number}.png" for number in range(3)
    ]
    assert {one["kind"] for one in result["failures"]} == {"corrupt"}
    assert all("not an image" in one["reason"] for one in result["failures"])
    code, out, err = svp(*arguments, "--max-failure-rate", 0.1)
    assert (code, err) == (0, "")
    assert "junk2.png: corrupt, not an image" in out


def test_files_that_a_manifest_names_in_vain_count_as_failed(here, svp):
    rows = [f"{number},images/train/red/red00{number}.png" for number in range(4)]
    rows += [f"gone{number},nowhere/{number}.png" for number in range(150)]
    (here / "pool.csv").write_text("\n".join(["id,path", *rows]) + "\n")
    arguments = ("embed", "--source", "pool.csv", "--encoder", "encoder", "--store", "new")
    code, out, err = svp(*arguments, "--json")
    assert code == 5
    assert "150 of 154" in err
    result = json.loads(out)["result"]
    assert (result["embedded"], result["unreadable"], result["failed_items"]) == (4, 150, 150)
    assert len(result["failures"]) == 100
    assert result["failures"][0]["kind"] == "missing"
    shards = []
    for shard in ("0/2", "1/2"):
        code, out, _ = svp(*arguments, "--json", "--shard", shard, "--max-failure-rate", 1)
        assert code == 0
        shards.append(json.loads(out)["result"]["unreadable"])
    assert sum(shards) == 150
    assert min(shards) > 0


# The machine


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device", "store")


def test_a_full_disk_is_temporary(here, refused, monkeypatch):
    monkeypatch.setattr("feature_store.storage.LocalStorage.create", _full)
    said = refused(75, "embed", "--source", "images", "--encoder", "encoder", "--store", "new")
    assert "No space left on device: store." in said


def test_bugs_keep_their_traceback(here, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("svp.study.rounds.read_labels", broken)
    with pytest.raises(ZeroDivisionError):
        run(["select", "study", "-n", "2"])


def _stop(process: "subprocess.Popen[str]", begun: Path, number: int) -> int:
    deadline = time.monotonic() + 100
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert err.endswith("svp: Stopped. Run the same command again to continue.\n")
    assert "Traceback" not in err
    return process.returncode


def test_termination_stops_in_order(here, tmp_path):
    process = _process(
        *("pretrain", "--source", "images", "--output", "out", "--arch", "resnet8"),
        *("--image-size", "16", "--epochs", "1000000", "--batch-size", "8", "--device", "cpu"),
        env={**os.environ, "SVP_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert _stop(process, here / "out", signal.SIGTERM) == 143


def test_an_interrupt_stops_in_order(here):
    # Without torch, whose import alone takes seconds: a command that waits.
    code = (
        "import pathlib, signal, time, svp.cli, svp.study.labels as labels\n"
        # A job in the background inherits that SIGINT is ignored; a terminal's does not.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(*_): pathlib.Path('begun').touch(); time.sleep(60)\n"
        "labels.export_labels = wait\n"
        "svp.cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "labels", "export", "study", "labels.csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert _stop(process, here / "begun", signal.SIGINT) == 130


def test_a_closed_pipe_is_not_an_error(here):
    process = _process("store", "ls", "store")
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_torch_is_left_as_it_was(here, done):
    before = torch.random.get_rng_state()
    done("select", "study", "-n", 2)
    assert torch.equal(torch.random.get_rng_state(), before)
