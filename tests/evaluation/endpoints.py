"""A local endpoint with scripted replies."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalEndpoint:
    """An HTTP server; `replies` are (status, body) in turn, the last one repeats.

    Text is wrapped as a chat completion; a function gets the handler.
    """

    def __init__(self, *replies):
        self.replies, self.requests, self.lock = list(replies), [], threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.requests.append((self.path, dict(self.headers), body))
                    status, reply = endpoint.replies.pop(0) if len(endpoint.replies) > 1 else endpoint.replies[0]
                if callable(reply):
                    with contextlib.suppress(OSError):  # the client may have disconnected
                        reply(self)
                    return
                if isinstance(reply, str):
                    reply = json.dumps({"model": "judge-0613", "choices": [{"message": {"content": reply}}]}).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "7")
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
