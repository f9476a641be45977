"""The labelling page's server, spoken to as a browser does, and as somebody else would."""

import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from label_material import CLASSES, add_round, new_study, pool_ids
from PIL import Image

from svp.study.label import label_round
from svp.study.label_store import label_files, votes_of
from svp.study.labels import import_labels, read_labels


class Client:
    """A browser: it follows the address once and keeps the cookie."""

    def __init__(self, url):
        self.host, _, self.token = url.removeprefix("http://").partition("/?token=")
        self.cookie = self.page_token = ""
        status, headers, _ = self.get(f"/?token={self.token}")
        assert status == 303
        self.cookie = headers["Set-Cookie"].partition(";")[0]
        page = self.get("/")[2].decode()
        self.page_token = page.partition('name="svp-token" content="')[2].partition('"')[0]

    def send(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.host, timeout=30)
        sent = {"Cookie": self.cookie, **(headers or {})}
        connection.request(method, path, body, {k: v for k, v in sent.items() if v is not None})
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        return reply.status, dict(reply.getheaders()), data

    def get(self, path, **headers):
        return self.send("GET", path, headers=headers)

    def post(self, path, body, **headers):
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        sent = {"X-SVP-Token": self.page_token, "Content-Type": "application/json", **named}
        status, _, data = self.send("POST", path, json.dumps(body), sent)
        return status, json.loads(data) if status == 200 else data.decode()


def wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("server")
    study = new_study(root)
    add_round(study, pool_ids(study)[::-1])
    big = root / "images" / pool_ids(study)[-1]
    Image.new("RGB", (3000, 1500), (9, 9, 9)).save(big, format="JPEG")
    (root / "images" / pool_ids(study)[0]).write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return study


@pytest.fixture
def study(material):
    yield material
    for path in sorted(material.labels_dir.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.fixture
def served(study):
    opened, results, said = threading.Event(), [], []

    def announce(url):
        said.append(url)
        opened.set()

    def work():
        results.append(label_round(study, annotator="ann", opened=announce))

    thread = threading.Thread(target=work)
    thread.start()
    assert opened.wait(60)
    client = Client(said[0])
    yield client, results
    with contextlib.suppress(OSError):  # a test may have finished it
        client.post("/finish", {})
    thread.join(30)
    assert not thread.is_alive()


def test_answers_are_saved_one_by_one_and_taken_back(study, served):
    client, results = served
    ids = pool_ids(study)[::-1]
    state = json.loads(client.get("/state")[2])
    assert [item["rank"] for item in state["items"]] == [1, 2, 3, 4, 5, 6]
    assert state["classes"] == list(CLASSES)
    assert client.post("/answer", {"rank": 1, "label": "red"})[1]["labelled"] == 1
    assert read_labels(study) == {ids[0]: "red"}
    assert client.post("/answer", {"rank": 2, "label": "  deep   teal "})[1]["classes"][-1] == (
        "deep teal"
    )
    assert client.post("/answer", {"rank": 1, "label": "blue"})[1]["labelled"] == 2
    assert read_labels(study) == {ids[0]: "blue", ids[1]: "deep teal"}
    assert client.post("/skip", {"rank": 3})[1]["skipped"] == 1
    for expected in ({ids[0]: "blue", ids[1]: "deep teal"}, {ids[0]: "red", ids[1]: "deep teal"}):
        assert client.post("/undo", {})[0] == 200
        assert read_labels(study) == expected
    client.post("/undo", {})
    client.post("/undo", {})
    assert read_labels(study) == {}
    assert client.post("/undo", {})[1]["item"] is None
    client.post("/answer", {"rank": 4, "label": "red"})
    (journal,) = label_files(study)
    count = int(journal.partition("#")[2])
    client.post("/answer", {"rank": 4, "label": "green"})
    # A receipt that was written in between still means the same.
    assert read_labels(study, [journal]) == {ids[3]: "red"}
    assert label_files(study) == [journal.replace(f"#{count}", f"#{count + 1}")]
    assert [vote.label for vote in votes_of(study)[ids[3]]] == ["red", "green"]
    client.post("/finish", {})
    wait_until(lambda: results)
    assert (results[0].finished, results[0].answers, results[0].labelled) == (True, 5, 1)


def test_an_import_meanwhile_and_a_later_answer(study, served, tmp_path):
    client, _ = served
    name = pool_ids(study)[::-1][1]
    client.post("/answer", {"rank": 2, "label": "red"})
    (tmp_path / "a.csv").write_text(f"id,label\n{name},blue\n")
    import_labels(study, tmp_path / "a.csv")
    assert read_labels(study)[name] == "blue"
    client.post("/answer", {"rank": 2, "label": "green"})
    assert read_labels(study)[name] == "green"


def test_pictures_come_by_rank_at_screen_size_without_names(study, served):
    client, _ = served
    status, headers, data = client.get("/image/1")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(data)).size == (1600, 800)
    assert Image.open(io.BytesIO(client.get("/thumbnail/1")[2])).size == (96, 48)
    status, _, data = client.get("/image/6")
    assert status == 422
    assert b"nothing" not in data
    state = client.get("/state")[2].decode()
    assert not any(name in state for name in pool_ids(study))
    assert json.loads(client.get("/guess/2")[2]) == {"predicted": "red", "confidence": 0.75}
    assert "confidence" not in state
    for path in ("/image/7", "/image/-1", "/image/../../study.toml", "/image/1/2", "/study.toml",
                 "/page/page.html", "//etc/passwd", "/guess/0"):  # fmt: skip
        assert client.get(path)[0] in (400, 404), path


def test_strangers_are_refused(study, served):
    client, _ = served
    good = client.cookie
    paths = ("/", "/state", "/image/1", "/page.js", "/guess/1", "/?token=", "/?token=" + "a" * 43)
    for cookie in (None, good[:-1], good.replace("=", "=x"), "=;=;", "svp_label=1"):
        client.cookie = cookie
        for path in paths:
            assert client.get(path)[0] == 403, (cookie, path)
        assert client.post("/answer", {"rank": 1, "label": "red"})[0] == 403
    client.cookie = good
    answer = {"rank": 1, "label": "red"}
    assert client.post("/answer", answer, X_SVP_Token="")[0] == 403
    assert client.post("/answer", answer, X_SVP_Token=client.token)[0] == 403
    assert client.post("/answer", answer, Origin="http://evil.example")[0] == 403
    for host in ("evil.example", f"evil.example:{client.host.partition(':')[2]}", "127.0.0.1", ""):
        assert client.get("/state", Host=host)[0] == 421, host
        assert client.post("/answer", answer, Host=host)[0] == 421
    assert client.post("/answer", answer, Content_Type="text/plain")[0] == 400
    assert client.post("/answer", {"rank": 1, "label": "x" * 20_000})[0] == 400
    assert client.send("PUT", "/answer")[0] == 501
    for body in ({"rank": 99, "label": "a"}, {"rank": "1", "label": "a"}, {"rank": 1, "label": " "},
                 {"rank": True, "label": {}}, {"rank": 1, "label": "a\x00b"}, {}):  # fmt: skip
        assert client.post("/answer", body)[0] == 400, body
    assert read_labels(study) == {}
    headers = client.get("/")[1]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"


def test_a_killed_server_loses_no_answer(study):
    code = "from svp.cli import main; main()"
    command = [sys.executable, "-c", code, "label", str(study.path), "--no-browser"]
    for number in (1, 2):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            line = process.stderr.readline()
            client = Client(line.partition("Label here: ")[2].strip())
            state = json.loads(client.get("/state")[2])
            assert state["labelled"] == number - 1
            assert state["skipped"] == number - 1
            assert client.post("/answer", {"rank": number, "label": "red"})[0] == 200
            assert client.post("/skip", {"rank": number + 3})[0] == 200
            os.kill(process.pid, signal.SIGKILL)
    assert len(read_labels(study)) == 2
    # What a kill left behind the last whole line does not count.
    last = sorted(study.labels_dir.glob("*.journal.csv"))[-1]
    with last.open("a") as stream:
        stream.write(f"{pool_ids(study)[0]},re")
    assert len(read_labels(study)) == 2


def test_idle_servers_stop(study):
    done = label_round(study, idle_s=0.3)
    assert (done.finished, done.answers, done.waiting, done.file) == (False, 0, 6, None)
