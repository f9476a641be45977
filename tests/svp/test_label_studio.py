"""A real Label Studio server: tasks in, people's answers through its API, its export back.

Runs where SVP_LABEL_STUDIO names the `label-studio` program, from an environment of its own.
"""

import json
import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from label_material import CLASSES, add_round, new_study, pool_ids

from svp.study.label_export import export_items
from svp.study.labels import import_labels, read_labels

PROGRAM = os.environ.get("SVP_LABEL_STUDIO", "")
TOKEN = "0123456789abcdef0123456789abcdef01234567"
START_S = 900  # migrations of its database take minutes on a busy machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PROGRAM, reason="SVP_LABEL_STUDIO names no label-studio program"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelstudio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "LABEL_STUDIO_BASE_DATA_DIR": str(root / "data"),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root / "served"),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    (root / "data").mkdir()
    command = [
        PROGRAM, "start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1",
        "--username", "ann@example.com", "--password", "of-this-test-only", "--user-token", TOKEN,
    ]  # fmt: skip
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        call = Api(f"http://127.0.0.1:{port}")
        end = time.monotonic() + START_S
        while not call.answers():
            assert process.poll() is None, (root / "log").read_text()[-2000:]
            assert time.monotonic() < end, (root / "log").read_text()[-2000:]
            time.sleep(1)
        yield root / "served", call
    finally:
        process.terminate()
        process.wait(30)


class Api:
    def __init__(self, address):
        self._address = address

    def answers(self):
        try:
            return self("GET", "/api/projects") is not None
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def __call__(self, method, path, body=None, *, raw=False):
        request = urllib.request.Request(
            self._address + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            data = reply.read()
        return data if raw else json.loads(data)


def test_a_round_through_the_server(server, tmp_path):
    served, call = server
    study = new_study(served)
    ids = pool_ids(study)
    add_round(study, ids[::-1])
    done = export_items(study, tmp_path / "tasks.json", format="label-studio", images=str(served))
    tasks_file, config_file = done.files
    project = call(
        "POST", "/api/projects", {"title": "round 0", "label_config": config_file.read_text()}
    )["id"]
    call(
        "POST",
        "/api/storages/localfiles",
        {"project": project, "path": str(served / "images"), "use_blob_urls": True},
    )
    posted = json.loads(tasks_file.read_text())
    call("POST", f"/api/projects/{project}/import", posted)
    page = call("GET", f"/api/tasks?project={project}&page_size=100&fields=all")
    tasks = sorted(page["tasks"], key=lambda task: task["id"])
    # The server keeps the order to label, the ids and the guesses.
    assert [task["data"]["svp_id"] for task in tasks] == ids[::-1]
    assert tasks[0]["predictions"][0]["score"] == 0.75
    picture = call("GET", tasks[0]["data"]["image"], raw=True)
    assert picture == Path(served / "images" / ids[-1]).read_bytes()
    by_id = {task["data"]["svp_id"]: task["id"] for task in tasks}

    def annotate(name, label, *, cancelled=False):
        result = [
            {
                "from_name": "label",
                "to_name": "image",
                "type": "choices",
                "value": {"choices": [label]},
            }
        ]
        call(
            "POST",
            f"/api/tasks/{by_id[name]}/annotations/",
            {"result": result, "was_cancelled": cancelled},
        )

    for name in ids[:3]:
        annotate(name, name.split("/")[1])
    annotate(ids[3], "red", cancelled=True)
    annotate(ids[4], "red")
    annotate(ids[4], "blue")  # the same person again: the newest answer counts
    export = json.loads(
        call(
            "GET",
            f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true",
            raw=True,
        )
    )
    assert len(export) == len(ids)
    random.Random(1).shuffle(export)
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(export))
    first = import_labels(study, answers)
    assert (first.new, first.skipped, first.blank) == (4, 1, 1)
    assert [conflict.id for conflict in first.conflicts] == [ids[4]]
    expected = {name: name.split("/")[1] for name in ids[:3]} | {ids[4]: "blue"}
    assert read_labels(study) == expected
    random.Random(2).shuffle(export)
    answers.write_text(json.dumps(export))
    again = import_labels(study, answers)
    assert (again.file, again.new, again.votes) == (None, 0, 0)
    # Its other exports say the same.
    for kind, suffix in (("JSON_MIN", "json"), ("CSV", "csv")):
        data = call("GET", f"/api/projects/{project}/export?exportType={kind}", raw=True)
        other = tmp_path / f"other.{suffix}"
        other.write_bytes(data)
        assert import_labels(study, other).new == 0
        assert read_labels(study) == expected
    assert set(CLASSES) >= set(expected.values())
