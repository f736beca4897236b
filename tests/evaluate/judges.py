"""A server that speaks OpenAI's API, whose answers a test writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]  # the body, and "key", what the client says of itself
# The answer's text; or a status with a body and headers.
Reply = str | tuple[int, str, dict[str, str]]


@contextmanager
def judge(answer: Callable[[Request], Reply]) -> Iterator[str]:
    """Runs one, which answers each request with what `answer` gives; its address up to /v1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            reply = answer(body | {"key": self.headers.get("Authorization")})
            if isinstance(reply, str):
                message = {"role": "assistant", "content": reply}
                reply = (200, json.dumps({"choices": [{"message": message}]}), {})
            status, text, headers = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
