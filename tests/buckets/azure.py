"""An Azure Blob service: Azurite, Microsoft's emulator, which npm installs.

`npm install azurite`, then set SVP_AZURITE to its `node_modules/.bin/azurite-blob`, or have that on
the PATH.
"""

import base64
import email.utils
import hashlib
import hmac
import os
import shutil

from tests.buckets.service import Service, free_port, running

ACCOUNT = "devstoreaccount1"
# Azurite's own, in its documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2023-11-03"


class AzureService(Service):
    scheme = "az"
    variables = ("AZURE_", "AZURITE_")
    credentials = "AZURE_STORAGE_ACCOUNT_NAME"
    created = 201

    @property
    def environment(self):
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.url}/{ACCOUNT}",
        }

    def forward(self, method, path, headers, body):
        # Not one after the other: what two writers may do to each other is Azurite's own.
        status, kept, data = self.ask(method, path, headers, body)
        if (method, status, data) == ("GET", 206, b""):
            # Azure refuses a range behind the end; Azurite sends nothing, from 5 to 4.
            return 416, {}, b"<Error><Code>InvalidRange</Code></Error>"
        return status, kept, data

    def make_bucket(self, name):
        """Make a container with a request signed by the account's key, as Azure documents it."""
        headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": VERSION}
        signed = "\n".join([
            "PUT", *[""] * 11, *(f"{key}:{value}" for key, value in sorted(headers.items())),
            f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container",
        ])  # fmt: skip
        digest = hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        headers["Content-Length"] = "0"
        status, _, data = self.ask("PUT", f"/{ACCOUNT}/{name}?restype=container", headers)
        assert status in (201, 409), data


def find_azurite():
    """Return the command, or None where it is not installed."""
    return os.environ.get("SVP_AZURITE") or shutil.which("azurite-blob")


def running_azure(command):
    """Start Azurite on a free port, everything in memory, and the proxy before it."""
    port = free_port()
    return running(
        [command, "--blobHost", "127.0.0.1", "--blobPort", str(port),
         "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"],
        "successfully listen",
        lambda _: AzureService(port),
    )  # fmt: skip
