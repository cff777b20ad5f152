"""A bundle's zip that arrives in pieces, in any order, over hours: what is whole stays on disk through any stop.

The file is as long as the bundle from the beginning, and which pieces it holds is read from the pieces themselves:
there is no second record that could disagree with it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.atomic import sync_folder
from agent.errors import ControlError
from agent.host.tls import client_context, refusal
from agent.remote.model_order import CHUNK_BYTES, ModelOrder

HTTPS_TIMEOUT_S = 30.0
_SUFFIX = ".part"


class Download:
    """One bundle on its way. Not safe for several threads at once: one owns it."""

    def __init__(self, folder: Path, order: ModelOrder) -> None:
        """Takes up what is in ``folder`` already, and removes what remains of other downloads there.

        Raises:
            OSError: the folder cannot be written.
        """
        self.order = order
        self._path = folder / f"{order.sha256}{_SUFFIX}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in folder.glob(f"*{_SUFFIX}"):
            if other != self._path:
                other.unlink(missing_ok=True)
        with self._path.open("ab") as file:
            if file.tell() != order.size:
                file.truncate(order.size)
        self._have = [self._is_whole(index) for index in range(len(order.chunks))]

    @property
    def got(self) -> int:
        """How many pieces are whole."""
        return sum(self._have)

    def missing(self, count: int) -> list[int]:
        """The first ``count`` pieces that are not there yet."""
        return [index for index, have in enumerate(self._have) if not have][:count]

    def put(self, index: int, data: bytes) -> bool:
        """Take a piece; False if it is not what the order says, or was there already.

        Raises:
            OSError: the disk does not take it.
        """
        if not 0 <= index < len(self._have) or self._have[index]:
            return False
        start, stop = self.order.span(index)
        if len(data) != stop - start or hashlib.sha256(data).hexdigest() != self.order.chunks[index]:
            return False
        with self._path.open("r+b") as file:
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._have[index] = True
        return True

    def finish(self, target: Path) -> None:
        """Move the whole file to ``target``.

        Raises:
            ControlError: ``download``: the whole is not what the order says.
        """
        if hashlib.sha256(self._path.read_bytes()).hexdigest() != self.order.sha256:
            raise ControlError("download", "the pieces are right and the whole is not", "make the order anew")
        self._path.replace(target)
        sync_folder(target.parent)

    def drop(self) -> None:
        """Forget it."""
        self._path.unlink(missing_ok=True)

    def _is_whole(self, index: int) -> bool:
        start, stop = self.order.span(index)
        with self._path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(stop - start)).hexdigest() == self.order.chunks[index]


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """A server may send us on, and not out of TLS."""

    def redirect_request(self, *request: Any) -> urllib.request.Request | None:
        if not str(request[-1]).startswith("https://"):
            raise urllib.error.URLError("the server redirects to an address that is not https")
        return super().redirect_request(*request)


def fetch(download: Download, stop: Callable[[], bool], cafile: Path | None = None) -> None:
    """Fetch the missing pieces from the order's address; what came before a failure is kept, and not fetched again.

    Raises:
        ControlError: ``download``: the server cannot be reached, the connection breaks off, or it is another file. The
            message says which of the three.
        OSError: the disk does not take it.
    """
    order = download.order
    missing = download.missing(1)
    if order.url is None or not missing:
        return
    begin = missing[0] * CHUNK_BYTES
    with _open(order.url, begin, cafile) as answer:
        index = _first_piece(answer, begin, order)
        while index < len(order.chunks) and not stop():
            data = _read(answer, index, order)
            if not download.put(index, data) and index in download.missing(len(order.chunks)):
                raise _another_file(order, f"its piece {index} has another hash")
            index += 1


def _open(url: str, begin: int, cafile: Path | None) -> http.client.HTTPResponse:
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=client_context(cafile)), _HttpsOnly())
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"})  # noqa: S310 - https, by the order
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=HTTPS_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            hint = "the server has a fault; it is tried again" if error.code >= 500 else "check the address"
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                hint = f"the file there ends before byte {begin}: check the address"
            raise ControlError("download", f"{url} answers {error.code} {error.reason}", hint) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise ControlError("download", *refusal(url, reason, "the system's authorities")) from error
        hint = "it is tried again; check the address, and the network"
        raise ControlError("download", f"{url} cannot be reached: {_words(reason)}", hint) from error
    return answer


def _first_piece(answer: http.client.HTTPResponse, begin: int, order: ModelOrder) -> int:
    """With which piece the answer begins.

    Raises:
        ControlError: ``download``: it is not as long as the order says, so that it is another file.
    """
    if answer.status != http.client.PARTIAL_CONTENT:
        begin = 0  # a server that knows no ranges sends everything, from the beginning
    elif told := re.match(r"bytes (\d{1,15})-", answer.headers.get("Content-Range", "")):
        begin = int(told[1])
    if answer.length is not None and begin + answer.length != order.size:
        raise _another_file(order, f"it has {begin + answer.length} bytes, the bundle has {order.size}")
    if begin % CHUNK_BYTES:
        raise ControlError("download", f"{order.url} sends another range than it was asked for", "see the web server")
    return begin // CHUNK_BYTES


def _read(answer: http.client.HTTPResponse, index: int, order: ModelOrder) -> bytes:
    """One whole piece.

    Raises:
        ControlError: ``download``: the connection broke off.
    """
    start, end = order.span(index)
    reason, data = "the connection was closed", b""
    try:
        data = answer.read(end - start)
    except http.client.IncompleteRead as error:
        data = error.partial
    except (OSError, http.client.HTTPException) as error:
        reason = _words(error)
    if len(data) < end - start:
        where = f"after {start + len(data)} of {order.size} bytes"
        hint = "the download goes on where it was; the network or the server is unsteady"
        raise ControlError("download", f"{order.url} broke off {where}: {reason}", hint)
    return data


def _another_file(order: ModelOrder, why: str) -> ControlError:
    return ControlError(
        "download", f"{order.url} holds another file: {why}", "check the address, or make the order anew"
    )


def _words(error: object) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
