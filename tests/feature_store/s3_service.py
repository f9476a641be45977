"""An S3 service on the loopback: moto's server in a process, behind a proxy that can misbehave."""

import contextlib
import http.client
import http.server
import subprocess
import sys
import threading
import time
import urllib.request


class Service:
    """Forwards requests one after the other, which makes moto's conditional PUT atomic.

    Attributes:
        misbehave: Called with method, path and headers before a request is forwarded. It may
            change the headers; what it returns is sent instead: a status, or DROP.
        log: (method, path, status) of what was answered.
    """

    DROP = -1
    """Forward the request, then close the connection without an answer."""

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

    def make_bucket(self, name):
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT")):
            pass

    def answered(self, method, status):
        return [path for how, path, code in self.log if (how, code) == (method, status)]

    def forward(self, method, path, headers, body):
        with (
            self.lock,
            contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", self.backend_port, timeout=30)
            ) as backend,
        ):
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
                wrong = service.misbehave(self.command, self.path, headers)
                if wrong and wrong != Service.DROP:
                    status, kept, data = wrong, {}, b"<Error><Code>SlowDown</Code></Error>"
                else:
                    status, kept, data = service.forward(self.command, self.path, headers, body)
                service.log.append((self.command, self.path, status))
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


@contextlib.contextmanager
def running_service():
    """Start moto on a free port, and the proxy before it."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as moto:
        try:
            line = ""
            deadline = time.monotonic() + 60
            while "Running on http" not in line:
                line = moto.stderr.readline()
                assert line or moto.poll() is None, "moto did not start"
                assert time.monotonic() < deadline, "moto did not start"
            port = int(line.strip().rpartition(":")[2])
            # Its request log would fill the pipe.
            drain = threading.Thread(target=lambda: [None for _ in moto.stderr])
            drain.start()
            service = Service(port)
            try:
                yield service
            finally:
                service.close()
        finally:
            moto.kill()
            moto.wait()
        drain.join()
