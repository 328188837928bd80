"""One file over HTTP, resumed where it broke off: a downloader for pooch, which has none."""

from __future__ import annotations

import logging
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import requests
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectTimeout,
    ProxyError,
    RequestException,
    SSLError,
    Timeout,
)
from requests.exceptions import ConnectionError as NoConnection
from tqdm import tqdm

from ultrarefiner import __version__
from ultrarefiner.errors import OutputError, UltraRefinerError
from ultrarefiner.io import read_json, write_json
from ultrarefiner.models.weights_record import is_web_page

logger = logging.getLogger(__name__)

_TIMEOUT = (20, 60)  # seconds to connect, and between two pieces
_PIECE = 1 << 18
_TRIES = 4  # without a single new byte
_ALL_TRIES = 200
_BUSY = {429, 500, 502, 503, 504}


class SourceError(Exception):
    """A source does not give the file; the message is the reason alone."""


class _TryAgain(Exception):
    """The server may answer otherwise in a moment; the message is the reason."""


@dataclass(frozen=True)
class _State:
    """What a partial file is the beginning of.

    Attributes:
        total: Size of the whole file; None when the server does not tell.
        etag: The server's ETag.
        modified: Its Last-Modified.
    """

    total: int | None = None
    etag: str | None = None
    modified: str | None = None

    @property
    def validator(self) -> str | None:
        """What makes a server send the whole file when it has changed; a weak tag cannot."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class ResumingDownloader:
    """A downloader for ``pooch.retrieve`` that goes on where a broken download ended.

    The partial file keeps its name, so that another process can go on with it. It starts over when
    the server has no ranges, or when size, ETag or Last-Modified are no longer what they were.

    Args:
        partial: The partial file; beside it ``{partial}.json`` says what it is the beginning of.
        size: Bytes of the whole file, as published.
        wait: Seconds before a broken connection is tried again; it doubles with each failure.
    """

    def __init__(self, partial: Path, size: int, wait: float) -> None:
        self.partial = partial
        self.state_file = partial.with_name(f"{partial.name}.json")
        self.size = size
        self.wait = wait
        self._name = partial.name
        self._connected = False

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        """Download ``url`` to ``output_file``; pooch calls this.

        Raises:
            SourceError: The source does not give the file.
            OutputError: There is no room for it.
        """
        self._name = unquote(url.rpartition("/")[2])
        failures, best = 0, self._have()
        for _ in range(_ALL_TRIES):
            try:
                self._go_on(url)
                break
            except (RequestException, _TryAgain) as error:
                failures = 0 if self._have() > best else failures + 1
                best = max(best, self._have())
                if failures >= _TRIES:
                    raise SourceError(f"{_reason(error)}; tried {_TRIES} times") from None
                logger.info("%s: %s; trying again", url, _reason(error))
                time.sleep(self.wait * 2 ** max(failures - 1, 0))
        else:
            raise SourceError(f"the connection broke {_ALL_TRIES} times")
        self.partial.replace(output_file)
        self.state_file.unlink(missing_ok=True)

    def _have(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _go_on(self, url: str) -> None:
        """Send one request and append what comes, until the file is whole."""
        state = self._state()
        have = self._have()
        if have and (state is None or have > self.size):
            self._start_over()
            have, state = 0, None
        if have == self.size:
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": f"ultrarefiner/{__version__}"}
        if have and state is not None:
            headers["Range"] = f"bytes={have}-"
            if state.validator:
                headers["If-Range"] = state.validator
        try:
            response = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
        except RequestException as error:
            # What never answered will hardly answer in a moment; offline, nobody waits for it.
            if self._connected and isinstance(error, NoConnection | Timeout):
                raise
            raise SourceError(_reason(error)) from None
        self._connected = True
        with response:
            self._take(response, state, have)

    def _take(self, response: requests.Response, state: _State | None, have: int) -> None:
        if response.status_code == 416 and have:
            self._start_over()
            raise _TryAgain("the server's file is shorter than what was here of it")
        if response.status_code in _BUSY:
            raise _TryAgain(f"HTTP {response.status_code} {response.reason}")
        if response.status_code not in (200, 206):
            raise SourceError(f"HTTP {response.status_code} {response.reason}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise SourceError("a web page instead of the file: a log-in or error page")
        found = _state_of(response)
        if response.status_code == 206:
            if found != state or _start_of(response) != have:
                self._start_over()
                raise _TryAgain("the file on the server has changed; it is fetched from the start")
        else:
            self._start_over()
            have = 0
        if found.total not in (None, self.size):
            raise SourceError(f"{found.total} bytes there, {self.size} were published")
        write_json(self.state_file, asdict(found))
        self._write(response, have)

    def _write(self, response: requests.Response, have: int) -> None:
        free = shutil.disk_usage(self.partial.parent).free
        if free < self.size - have:
            raise OutputError(
                f"{self.size - have} bytes are still to come and {free} are free on "
                f"{self.partial.parent.parent}. Free space, or name another folder."
            )
        told = have
        with (
            open(self.partial, "ab") as handle,
            # disable=None: no bar when stderr is a file.
            tqdm(
                desc=self._name,
                total=self.size,
                initial=have,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            for piece in response.iter_content(_PIECE):
                if have == 0 and is_web_page(piece):
                    raise SourceError("a web page instead of the file: a log-in or error page")
                have += len(piece)
                if have > self.size:
                    break
                handle.write(piece)
                bar.update(len(piece))
                if have - told >= self.size / 10:
                    told = have
                    logger.info("%s: %.0f of %.0f MB", self._name, have / 1e6, self.size / 1e6)
        if have != self.size:
            self._start_over()
            more = "more than " if have > self.size else ""
            raise SourceError(
                f"{more}{min(have, self.size)} bytes came, {self.size} were published"
            )

    def _state(self) -> _State | None:
        """Return what the partial file is the beginning of; None: that is not known."""
        if not self.state_file.exists():
            return None
        try:
            return _State(**read_json(self.state_file))
        except (UltraRefinerError, TypeError):
            return None

    def _start_over(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)


def _state_of(response: requests.Response) -> _State:
    headers = response.headers
    total = headers.get("Content-Length")
    if response.status_code == 206:
        total = headers.get("Content-Range", "").rpartition("/")[2]
    if headers.get("Content-Encoding", "identity") != "identity":
        total = None  # the length is that of the packed bytes
    return _State(
        total=int(total) if total and total.isdigit() else None,
        etag=headers.get("ETag"),
        modified=headers.get("Last-Modified"),
    )


def _start_of(response: requests.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ProxyError):
        return "no connection: the proxy does not answer or refuses"
    if isinstance(error, SSLError):
        return "no connection: the certificate is not accepted"
    if isinstance(error, ConnectTimeout):
        return "no connection: no answer"
    if "NameResolutionError" in text or "getaddrinfo" in text:
        return "no connection: the name is not known here"
    if "Connection refused" in text:
        return "no connection: refused"
    if isinstance(error, NoConnection | ChunkedEncodingError | Timeout):
        return "the connection broke"
    return text
