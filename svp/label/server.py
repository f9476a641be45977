"""A small server for the labelling page: loopback only, one secret, no file names in addresses.

Who has the address with the token gets a cookie; everything else needs it. The `Host` header must
name this very server, against DNS rebinding. A change also needs the token of the page in a header,
which no other site can send. The content security policy allows this server only.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from svp.label.session import RefusedError, Session

HOST: Final = "127.0.0.1"
MAX_BODY_BYTES: Final = 16 * 2**10
_TIMEOUT_S: Final = 30
_KEPT_PICTURES: Final = 64
_POLICY: Final = (
    "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES: Final = {
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# Longest sides in pixels: a picture that fills a screen, and one in the strip.
EDGES: Final = {"image": 1600, "thumbnail": 96}

Picture = tuple[str, bytes]


class PictureError(Exception):
    """An image cannot be shown; the text says why, for people."""


class LabelServer:
    """Serves one session until it is finished, stopped, or idle for too long.

    Args:
        session: What to label.
        picture: Returns type and bytes of an item's picture for its place and longest side; raises
            PictureError.
        port: Port on 127.0.0.1; 0 takes a free one.

    Raises:
        OSError: The port is taken.
    """

    def __init__(
        self, session: Session, picture: Callable[[int, int], Picture], *, port: int = 0
    ) -> None:
        self.token = secrets.token_urlsafe(32)
        self._server = _Server((HOST, port), session, _Gallery(picture), self.token)

    @property
    def port(self) -> int:
        """The port."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address with the token."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def serve(self, *, idle_s: float | None = None) -> bool:
        """Serve; return whether the page said that it is finished.

        Args:
            idle_s: Stop after so many seconds without a request; None: never.
        """
        serving = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        serving.start()
        try:
            while not self._server.finished.wait(0.1):
                if idle_s is not None and time.monotonic() - self._server.last_request > idle_s:
                    return False
            return True
        finally:
            self._server.shutdown()
            serving.join()
            self._server.server_close()


class _Gallery:
    """Pictures that were made lately; two at most are decoded at once, so memory is bounded."""

    def __init__(self, picture: Callable[[int, int], Picture]) -> None:
        self._picture = picture
        self._kept: OrderedDict[tuple[int, int], Picture] = OrderedDict()
        self._lock = threading.Lock()
        self._turn = threading.Semaphore(2)

    def get(self, place: int, edge: int) -> Picture:
        with self._lock:
            if (place, edge) in self._kept:
                self._kept.move_to_end((place, edge))
                return self._kept[place, edge]
        with self._turn:
            made = self._picture(place, edge)
        with self._lock:
            self._kept[place, edge] = made
            while len(self._kept) > _KEPT_PICTURES:
                self._kept.popitem(last=False)
        return made


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False

    def __init__(
        self, address: tuple[str, int], session: Session, gallery: _Gallery, token: str
    ) -> None:
        super().__init__(address, _Handler)
        self.session, self.gallery, self.token = session, gallery, token
        self.page_token = hmac.new(token.encode(), b"page", hashlib.sha256).hexdigest()
        # Cookies know no ports: two servers of one machine must not share a name.
        self.cookie = f"svp_label_{self.server_address[1]}"
        self.finished = threading.Event()
        self.last_request = time.monotonic()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about clients that went away."""
        del request, client_address


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "svp"
    sys_version = ""
    timeout = _TIMEOUT_S
    _CHANGES: ClassVar = ("answer", "skip", "undo", "finish")

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: a log of addresses would hold the token."""

    def do_GET(self) -> None:
        """Answer a request for the page, its state or a picture."""
        with self._answering():
            path, _, query = self.path.partition("?")
            if not self._is_own_host():
                return self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "This is another server.")
            if path == "/" and query:
                return self._enter(query)
            if not self._has_cookie():
                return self._refuse(
                    HTTPStatus.FORBIDDEN, "Open the address that svp label printed."
                )
            if path == "/":
                text = _read("page.html").replace(b"{{token}}", self.server.page_token.encode())
                return self._send(text, "text/html; charset=utf-8")
            if path in _FILES:
                name, kind = _FILES[path]
                return self._send(_read(name), kind)
            if path == "/state":
                return self._send_json(self.server.session.state())
            what, _, rank = path.removeprefix("/").partition("/")
            if what == "guess" and rank.isdecimal():
                return self._send_json(self.server.session.guess(int(rank)))
            if what in EDGES and rank.isdecimal():
                place = self.server.session.place(int(rank))
                kind, data = self.server.gallery.get(place, EDGES[what])
                return self._send(data, kind, cache="private, max-age=3600")
            return self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def do_POST(self) -> None:
        """Answer a request to change something."""
        with self._answering():
            body = self._body()
            sent = self.headers.get("X-SVP-Token", "")
            # Bytes: compare_digest refuses text that is not ASCII.
            allowed = hmac.compare_digest(sent.encode(), self.server.page_token.encode())
            if not self._is_own_host():
                return self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "This is another server.")
            if not (allowed and self._has_cookie() and self._is_own_origin()):
                return self._refuse(
                    HTTPStatus.FORBIDDEN, "Open the address that svp label printed."
                )
            what = self.path.removeprefix("/")
            if what not in self._CHANGES:
                return self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")
            if body is None:
                return self._refuse(HTTPStatus.BAD_REQUEST, "A request must be a JSON object.")
            session = self.server.session
            if what == "answer":
                return self._send_json(session.answer(body.get("rank"), body.get("label")))
            if what == "skip":
                return self._send_json(session.skip(body.get("rank")))
            if what == "undo":
                return self._send_json(session.undo())
            self._send_json(session.state())
            return self.server.finished.set()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        self.server.last_request = time.monotonic()
        try:
            yield
        except PictureError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except RefusedError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"Refused: {error}.")
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except OSError as error:
            said = error.strerror or str(error)
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"Not saved: {said}.")

    def _enter(self, query: str) -> None:
        given = parse_qs(query).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            return self._refuse(HTTPStatus.FORBIDDEN, "Open the address that svp label printed.")
        self.send_response(HTTPStatus.SEE_OTHER)
        # The token leaves the address bar, and with it the history and the screenshots.
        self.send_header("Location", "/")
        self.send_header(
            "Set-Cookie",
            f"{self.server.cookie}={self.server.token}; Path=/; HttpOnly; SameSite=Strict",
        )
        self._finish_headers(b"", "text/plain; charset=utf-8", "no-store")
        return None

    def _is_own_host(self) -> bool:
        port = self.server.server_address[1]
        return self.headers.get("Host", "") in (f"{HOST}:{port}", f"localhost:{port}")

    def _is_own_origin(self) -> bool:
        origin = self.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc == self.headers.get("Host")

    def _has_cookie(self) -> bool:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        given = "" if cookie is None else cookie.value
        return hmac.compare_digest(given.encode(), self.server.token.encode())

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # the rest of the request is not read
            return None
        data = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            return None
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return body if isinstance(body, dict) else None

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._send((message + "\n").encode(), "text/plain; charset=utf-8", status=status)

    def _send_json(self, document: Any) -> None:
        self._send(json.dumps(document).encode(), "application/json")

    def _send(
        self,
        data: bytes,
        kind: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        cache: str = "no-store",
    ) -> None:
        self.send_response(status)
        self._finish_headers(data, kind, cache)

    def _finish_headers(self, data: bytes, kind: str, cache: str) -> None:
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": cache,
            "Content-Security-Policy": _POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _read(name: str) -> bytes:
    return resources.files("svp.label").joinpath("page", name).read_bytes()
