"""Google Cloud Storage services: moto's server in that dialect, and Google's own testbench.

Clients speak Google's XML API, which is S3's but for the condition of a PUT; the first service
translates that. The second is the reference for what a condition does: it takes PUTs as they are
sent. It has no DELETE and no listing in the XML API and tells clients less about an object than
Google does, so the proxy asks for these in the JSON API.

`pip install git+https://github.com/googleapis/storage-testbench` in an environment of its own, then
set SVP_GCS_TESTBENCH to its python.
"""

import json
import os
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

from tests.buckets.s3 import S3Service, running_moto
from tests.buckets.service import Service, free_port, running

JSON_API = "/storage/v1/b"
_TESTBENCH = """
import sys, testbench
from werkzeug import serving
serving.run_simple("127.0.0.1", int(sys.argv[1]), testbench.run(), threaded=True)
"""
_QUERY = {
    "prefix": "prefix", "delimiter": "delimiter", "continuation-token": "pageToken",
    "max-keys": "maxResults",
}  # fmt: skip


class GcsService(S3Service):
    scheme = "gs"
    variables = ("GOOGLE_",)
    credentials = "GOOGLE_APPLICATION_CREDENTIALS"

    @property
    def environment(self):
        return {"GOOGLE_BEARER_TOKEN": "token", "GOOGLE_BASE_URL": self.url}

    def forward(self, method, path, headers, body):
        sent = {key.lower(): value for key, value in headers.items()}
        assert "if-none-match" not in sent, "not a condition that Google knows"
        if sent.pop("x-goog-if-generation-match", None) == "0":
            sent["if-none-match"] = "*"
        return super().forward(method, path, sent, body)


def running_gcs():
    """Start moto on a free port, and the proxy before it."""
    return running_moto(GcsService)


class TestbenchService(Service):
    __test__ = False
    scheme, variables = GcsService.scheme, GcsService.variables
    credentials = GcsService.credentials
    environment = GcsService.environment

    def make_bucket(self, name):
        body = json.dumps({"name": name}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        status, _, data = self.ask("POST", f"{JSON_API}?project=project", headers, body)
        assert status in (200, 409), data

    def forward(self, method, path, headers, body):
        # Not one after the other: what two writers may do to each other is the testbench's own.
        url = urlsplit(path)
        bucket, _, name = unquote(url.path)[1:].partition("/")
        there = f"{JSON_API}/{bucket}/o/{quote(name, safe='')}"
        if not name:
            return self._listing(bucket, dict(parse_qsl(url.query)))
        if method == "DELETE":
            status, _, data = self.ask("DELETE", there, {})
            return (204, {}, b"") if status < 300 else _refusal(status, data)
        answer = ({}, b"")
        if method in ("GET", "PUT"):
            status, kept, data = self.ask(method, path, headers, body)
            if status >= 300:
                return _refusal(status, data)
            kept = {key: value for key, value in kept.items() if key.lower() == "content-range"}
            answer = (kept, data)
        described = self._describe(there)
        if isinstance(described, tuple):
            return described
        if method == "HEAD":
            return 200, described, b""
        described |= answer[0] | {"Content-Length": str(len(answer[1]))}
        return 206 if answer[0] else 200, described, answer[1]

    def _describe(self, there):
        status, _, data = self.ask("GET", there, {})
        if status != 200:
            return _refusal(status, data)
        stored = json.loads(data)
        changed = datetime.fromisoformat(stored["updated"]).astimezone(UTC)
        return {
            "ETag": f'"{stored["etag"]}"',
            "Last-Modified": format_datetime(changed, usegmt=True),
            "x-goog-generation": str(stored["generation"]),
            "Content-Length": str(stored.get("size", 0)),
        }

    def _listing(self, bucket, query):
        asked = {_QUERY[key]: value for key, value in query.items() if key in _QUERY}
        status, _, data = self.ask("GET", f"{JSON_API}/{bucket}/o?{urlencode(asked)}", {})
        if status != 200:
            return _refusal(status, data)
        found = json.loads(data)
        parts = [
            f"<Contents><Key>{escape(one['name'])}</Key><Size>{one.get('size', 0)}</Size>"
            f"<LastModified>{one['updated']}</LastModified><ETag>{one['etag']}</ETag></Contents>"
            for one in found.get("items", [])
        ]
        parts += [
            f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>"
            for prefix in found.get("prefixes", [])
        ]
        if token := found.get("nextPageToken"):
            parts.append(f"<NextContinuationToken>{escape(token)}</NextContinuationToken>")
        return 200, {}, f"<ListBucketResult>{''.join(parts)}</ListBucketResult>".encode()


def _refusal(status, data):
    # Why is for people only; the two APIs share the status.
    reason = data.decode(errors="replace")[:60] or "none given"
    return status, {}, f"<Error><Code>{escape(reason)}</Code></Error>".encode()


def find_testbench():
    """Return the python that has Google's testbench, or None."""
    return os.environ.get("SVP_GCS_TESTBENCH")


def running_testbench(python):
    """Start Google's testbench on a free port, and the proxy before it."""
    port = free_port()
    return running(
        [python, "-c", _TESTBENCH, str(port)], "Running on http", lambda _: TestbenchService(port)
    )
