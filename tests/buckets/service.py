"""A service of buckets on the loopback: a server process behind a proxy that can misbehave."""

import contextlib
import http.client
import http.server
import os
import socket
import subprocess
import threading
import time
import urllib.parse
from typing import ClassVar


class Service:
    """Forwards requests to a server, one after the other.

    Attributes:
        misbehave: Called with method, path and headers before a request is forwarded. It may
            change the headers; what it returns is sent instead: a status, or DROP.
        log: (method, path, status) of what was answered.
    """

    DROP = -1
    """Forward the request, then close the connection without an answer."""

    scheme: ClassVar[str]
    variables: ClassVar[tuple[str, ...]]
    """How the names of its environment variables begin."""
    credentials: ClassVar[str]
    """The variable that says who asks."""
    created: ClassVar[int] = 200
    """What it answers when an object was made."""

    def __init__(self, backend_port):
        self.backend_port = backend_port
        self.lock = threading.Lock()
        self.reset()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reset(self):
        self.misbehave = lambda method, path, headers: None
        self.log = []

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def environment(self):
        """Return what its users set."""
        raise NotImplementedError

    def make_bucket(self, name):
        raise NotImplementedError

    @contextlib.contextmanager
    def in_use(self, monkeypatch):
        """Make it what this process and its children reach, behaving well at both ends."""
        for name in [name for name in os.environ if name.startswith(self.variables)]:
            monkeypatch.delenv(name)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        self.reset()
        yield self
        self.reset()

    def answered(self, method, status):
        return [path for how, path, code in self.log if (how, code) == (method, status)]

    def forward(self, method, path, headers, body):
        with self.lock:
            return self.ask(method, path, headers, body)

    def ask(self, method, path, headers, body=b""):
        backend = http.client.HTTPConnection("127.0.0.1", self.backend_port, timeout=30)
        with contextlib.closing(backend):
            backend.request(method, path, body, headers)
            answer = backend.getresponse()
            return answer.status, answer.headers, answer.read()

    def _handler(service):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one packet: two would wait for each other's acknowledgement.
            wbufsize = 2**20
            disable_nagle_algorithm = True

            def log_message(self, *arguments):
                pass

            def handle(self):
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def answer(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = dict(self.headers.items())
                path = urllib.parse.unquote(self.path)  # some clients quote slashes
                wrong = service.misbehave(self.command, path, headers)
                if wrong and wrong != Service.DROP:
                    status, kept, data = wrong, {}, b"<Error><Code>SlowDown</Code></Error>"
                else:
                    status, kept, data = service.forward(self.command, self.path, headers, body)
                service.log.append((self.command, path, status))
                if wrong == Service.DROP:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in kept.items():
                    if name.lower() not in {"connection", "server", "date", "transfer-encoding"}:
                        self.send_header(name, value)
                if "content-length" not in {name.lower() for name in kept}:
                    self.send_header("content-length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        return Handler


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def running(command, ready, make):
    """Start a server, wait for the line that has `ready` in it, and put a service before it.

    Args:
        command: Of the server.
        ready: In the line it prints when it listens.
        make: Called with that line; returns the service.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            line = ""
            deadline = time.monotonic() + 60
            while ready not in line:
                line = server.stdout.readline()
                assert line or server.poll() is None, f"{command} did not start"
                assert time.monotonic() < deadline, f"{command} did not start"
            # Its request log would fill the pipe.
            drain = threading.Thread(target=lambda: [None for _ in server.stdout])
            drain.start()
            service = make(line)
            try:
                yield service
            finally:
                service.close()
        finally:
            server.kill()
            server.wait()
        drain.join()
