"""A web server on this machine that gives a file well or badly, for the tests of fetching."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Manners:
    """How the server behaves.

    Attributes:
        content: The file's bytes.
        ranges: Whether it can give a part of the file.
        breaks: It closes the connection after so many bytes of a request, so many times.
        status: An answer to give instead, so many times.
        kind: Content type.
        etag: The file's tag; None: the server sends none.
        length: Whether it says how long the file is.
        paths: The file's names; another one is not found. None: every name.
        requests: What was asked: path, Range, If-Range.
    """

    content: bytes
    ranges: bool = True
    breaks: tuple[int, int] = (0, 0)
    status: tuple[int, int] = (200, 0)
    kind: str = "application/octet-stream"
    etag: str | None = '"one"'
    length: bool = True
    paths: tuple[str, ...] | None = None
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    manners: Manners

    def do_GET(self):
        manners = self.manners
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        manners.requests.append((self.path, wanted, condition))
        code, times = manners.status
        if times > 0:
            manners.status = (code, times - 1)
            self.send_error(code)
            return
        if manners.paths is not None and self.path not in manners.paths:
            self.send_error(404)
            return
        start = 0
        if wanted and manners.ranges and (condition is None or condition == manners.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start > 0 and start >= len(manners.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", manners.kind)
        if manners.etag:
            self.send_header("ETag", manners.etag)
        whole = len(manners.content)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if manners.length:
            self.send_header("Content-Length", str(whole - start))
        self.end_headers()
        body = manners.content[start:]
        after, times = manners.breaks
        if times > 0:
            manners.breaks = (after, times - 1)
            body = body[:after]
        with suppress(ConnectionError):  # the one who asked was killed
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Say nothing."""


@contextmanager
def serving(manners: Manners) -> Iterator[str]:
    """Serve a file; give the address of its folder."""
    handler = type("Handler", (_Handler,), {"manners": manners})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def refusing() -> Iterator[str]:
    """Give an address where nobody listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    port = server.server_port
    server.server_close()
    yield f"http://127.0.0.1:{port}"
