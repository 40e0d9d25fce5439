"""A hub in memory, spoken to over HTTP on this machine, so that pushing and loading run for real without a network."""

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.hub.routes import Request, Response, UnknownRequestError, answer
from tests.hub.store import HubError, Store, StoredFile


class LocalHub:
    """Starts at once; `close` ends it. All names are `owner/name`; the user who pushes is `me`.

    Args:
        port: Where it listens; any free port by default.

    Attributes:
        url: what HF_ENDPOINT must be before huggingface_hub is imported.
        requests: method and path of each request so far.
        unknown: the requests that nothing here answers.
        faults: path of a request to a function that changes the body sent for a GET, but not its headers; where the
            body becomes shorter, the connection breaks there.
    """

    def __init__(self, port: int = 0):
        self._store = Store()
        self._lock = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        self.unknown: list[str] = []
        self.faults: dict[str, Callable[[bytes], bytes]] = {}
        self._server = _Server(("127.0.0.1", port), _Connection)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # A daemon, as are the threads of connections that clients keep open: none may hold up the interpreter's end.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def files(self, name: str, *, kind: str = "model", revision: str = "main") -> dict[str, int]:
        """Sizes in bytes of a repository's files, by path."""
        with self._lock:
            files = self._store.get(kind, name).at(revision).files
            return {path: len(file.content) for path, file in sorted(files.items())}

    def content(self, name: str, path: str, *, kind: str = "model", revision: str = "main") -> bytes:
        with self._lock:
            return self._store.get(kind, name).at(revision).files[path].content

    def commits(self, name: str, *, kind: str = "model") -> list[str]:
        """All commits of a repository, oldest first; the first is empty."""
        with self._lock:
            return [commit.sha for commit in self._store.get(kind, name).commits]

    def commit(self, name: str, files: Mapping[str, bytes], *, kind: str = "model", in_lfs: bool = False) -> str:
        """Puts files straight into a repository, which is created if need be; returns the commit."""
        with self._lock:
            self._store.create(kind, name)
            repository = self._store.get(kind, name)
            stored = {path: StoredFile(content, in_lfs) for path, content in files.items()}
            return repository.commit({**repository.at("main").files, **stored}, "files put there by a test").sha

    def remove(self, name: str, *, kind: str = "model") -> None:
        """Forgets a repository, whose files are held in memory."""
        with self._lock:
            self._store.delete(kind, name)

    def answer(self, request: Request) -> Response:
        with self._lock:
            self.requests.append((request.method, request.path))
            try:
                return answer(self._store, request)
            except HubError as error:
                return _refusal(error.status, error.code, error.text)
            except UnknownRequestError as error:
                self.unknown.append(str(error))
                return _refusal(501, "UnknownRequest", f"the local hub has no answer to {error}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: LocalHub


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else each small answer waits 40 ms for the client's acknowledgement.

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub = self.server.hub
        request = Request(self.command, url.path, parse_qs(url.query), headers, self._body(headers), hub.url)
        response = hub.answer(request)
        self.send_response(response.status)
        for name, value in {"Content-Type": "application/json", **response.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            body = hub.faults.get(url.path, bytes)(response.body)
            self.wfile.write(body)
            self.close_connection |= len(body) < len(response.body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *args: object) -> None:
        pass


def _refusal(status: int, code: str, text: str) -> Response:
    return Response(b'{"error": "%s"}' % code.encode(), status, {"X-Error-Code": code, "X-Error-Message": text})
