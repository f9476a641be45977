"""SIGINT and SIGTERM at any moment of a command: one line, its exit code, nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from study_fixtures import write_encoder, write_images

from svp.cli import run

STOPPED = "svp: Stopped. Run the same command again to continue.\n"
COMMANDS = {
    "init": "init new --source images --encoder encoder --store new-store",
    "embed": "embed study --segment-rows 8 --chunk-rows 4 --device cpu",
    "select": "select embedded -n 4 --device cpu",
    "export": "labels export embedded labels.csv --round 0",
    "verify": "store verify store",
    "copy": "store copy store copied",
    "compact": "store compact store",
}

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="asks Linux when a process takes its signals"
)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    write_images(root / "images", train=6, test=2)
    write_encoder(root / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("SVP_CACHE_DIR", str(root / "cache"))
        for name, store in (("study", "none-yet"), ("embedded", "store")):
            words = ["--source", "images", "--encoder", "encoder", "--store", store]
            assert run(["init", name, *words]) == 0
        assert run(["embed", "embedded", "--segment-rows", "6", "--device", "cpu"]) == 0
    return root


@pytest.fixture
def here(material, tmp_path, monkeypatch):
    shutil.copytree(material, tmp_path / "w", symlinks=True)
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path / "w" / "cache"))
    return tmp_path / "w"


def _start(words, **options):
    # A job in the background inherits that SIGINT is ignored; one of a terminal does not.
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def _wait_until_signals_are_taken(process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


def _temporary(root):
    return [path for path in root.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("number", "after_s"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.3)])
def test_a_command_stops_in_order_while_it_imports(here, name, number, after_s):
    process = _start(["-m", "svp", *COMMANDS[name].split()])
    _wait_until_signals_are_taken(process)
    time.sleep(after_s)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0 and after_s:
        pytest.skip("it was done before")
    assert (process.returncode, out, err) == (128 + number, "", STOPPED)
    assert not _temporary(here)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_stopped_command_finishes_when_it_runs_again(here, tmp_path, name, share):
    def timed():
        began = time.monotonic()
        run_again = subprocess.run(
            [sys.executable, "-m", "svp", *COMMANDS[name].split()], capture_output=True, text=True
        )
        return time.monotonic() - began, run_again

    shutil.copytree(here, tmp_path / "other")
    whole_s, whole = timed()
    assert whole.returncode in (0, 3)  # no round to export the labels of
    os.chdir(tmp_path / "other")
    process = _start(["-m", "svp", *COMMANDS[name].split()])
    time.sleep(share * whole_s)
    process.terminate()
    _, err = process.communicate(timeout=60)
    # After the work is done nobody catches a signal, and all that was to be said was said.
    late = process.returncode == -signal.SIGTERM and err in ("", whole.stderr)
    stopped = (process.returncode, err) == (143, STOPPED)
    assert stopped or late or process.returncode == whole.returncode
    if process.returncode == 143:
        assert timed()[1].returncode == whole.returncode
    assert not _temporary(Path.cwd())


WAITS = """
import pathlib, time, svp.cli, svp.study.labels as labels
def wait():
    pathlib.Path('begun').touch()
    time.sleep(60)
class Final:
    def __del__(self):
        wait()
def swallowing():
    try:
        wait()
    except:
        pass
    time.sleep(60)
def replacing():
    try:
        wait()
    except BaseException:
        raise ImportError('half of it') from None
def finalising():
    Final()
    time.sleep(60)
labels.export_labels = lambda *_: {name}()
svp.cli.main()
"""


@pytest.mark.parametrize("name", ["wait", "swallowing", "replacing", "finalising"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_code_that_drops_exceptions_does_not_hold_a_signal_up(here, name, number):
    code = WAITS.replace("{name}", name)
    process = _start(["-c", code, "labels", "export", "study", "labels.csv"])
    while not (here / "begun").exists() and process.poll() is None:
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out, err) == (128 + number, "", STOPPED)
    assert time.monotonic() - began < 40


def test_an_ignored_interrupt_stays_ignored(here):
    code = WAITS.replace("{name}", "wait").replace("sleep(60)", "sleep(0.5)")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "labels", "export", "study", "labels.csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    while not (here / "begun").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=50)
    assert STOPPED not in err
    assert process.returncode != 130
