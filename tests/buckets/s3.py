"""An S3 service: moto's server. One request at a time makes its conditional PUT atomic."""

import sys
import urllib.request

from tests.buckets.service import Service, running


class S3Service(Service):
    scheme = "s3"
    variables = ("AWS_",)
    credentials = "AWS_ACCESS_KEY_ID"

    @property
    def environment(self):
        return {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }

    def make_bucket(self, name):
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT")):
            pass


def running_s3():
    """Start moto on a free port, and the proxy before it."""
    return running_moto(S3Service)


def running_moto(make):
    """Start moto on a free port, and what `make` makes of the port before it."""
    return running(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        "Running on http",
        lambda line: make(int(line.strip().rpartition(":")[2])),
    )
