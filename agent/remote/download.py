"""A bundle's zip that arrives in pieces, in any order, over hours: what is whole stays on disk through any stop.

The file is as long as the bundle from the beginning, and which pieces it holds is read from the pieces themselves:
there is no second record that could disagree with it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
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
    """Not safe for several threads at once: one owns it."""

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
    """Fetch the missing pieces from the order's address; what came before a failure is kept.

    Raises:
        ControlError: ``download``: the server cannot be reached, or sends something else.
        OSError: the disk does not take it.
    """
    order = download.order
    missing = download.missing(1)
    if order.url is None or not missing:
        return
    context = client_context(cafile)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _HttpsOnly())
    first = missing[0]
    request = urllib.request.Request(order.url, headers={"Range": f"bytes={first * CHUNK_BYTES}-"})  # noqa: S310
    try:
        with opener.open(request, timeout=HTTPS_TIMEOUT_S) as answer:
            # A server that knows no ranges sends everything, from the beginning.
            index = first if answer.status == http.client.PARTIAL_CONTENT else 0
            while index < len(order.chunks) and not stop():
                start, end = order.span(index)
                data = answer.read(end - start)
                if not download.put(index, data) and index in download.missing(len(order.chunks)):
                    raise ControlError("download", f"{order.url} holds another file", "check the address")
                index += 1
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ssl.SSLError, ConnectionError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise ControlError("download", *refusal(order.url, reason, "the system's authorities")) from error
        raise ControlError("download", f"{order.url}: {error}", "it is tried again; is the address right?") from error
