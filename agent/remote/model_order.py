"""What an envelope of the kind ``model`` orders: one bundle, named by the hashes of its pieces; and how it arrives.

    {"name": "talus-student", "version": "0.2.0", "sha256": HEX, "bytes": N, "chunks": [HEX, ...], "promote": "auto"}

The hash of every piece stands in the signed envelope, so a piece is judged when it arrives, from wherever: a stranger
on the broker can delay an update and not spoil it. ``url`` (https) says where the whole file may be had instead.

The zip arrives in pieces, in any order, over hours (``Download``): what is whole stays on disk through any stop. The
file is as long as the bundle from the beginning, and which pieces it holds is read from the pieces themselves: there is
no second record that could disagree with it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.atomic import sync_folder
from agent.errors import ControlError, in_words
from agent.host.tls import client_context, refusal
from agent.remote.gate import first_fault

KIND = "model"
CHUNK_BYTES = 32 * 1024
MAX_BYTES = 16 << 20
"""Largest zip of a bundle: its hashes still fit into an envelope."""

INDEX_BYTES = 4
MAX_PIECE = CHUNK_BYTES + INDEX_BYTES
"""Largest message that carries a piece."""

HTTPS_TIMEOUT_S = 30.0
_SUFFIX = ".part"

Promote: TypeAlias = Literal["auto", "hold"]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelOrder(BaseModel):
    """A bundle to fetch, try and take: zip of ``size`` bytes in pieces of ``CHUNK_BYTES`` (the last one is shorter).

    ``promote``: ``auto`` takes it when it has agreed with the live model for long enough, ``hold`` waits for a command.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,31}$")]
    sha256: _Hash
    size: Annotated[int, Field(alias="bytes", ge=1, le=MAX_BYTES)]
    chunks: tuple[_Hash, ...] = Field(strict=False)
    promote: Promote
    url: Annotated[str, Field(pattern=r"^https://[!-~]{1,480}$")] | None = None

    @model_validator(mode="after")
    def _pieces_fit(self) -> ModelOrder:
        if len(self.chunks) != -(-self.size // CHUNK_BYTES):
            raise ValueError(f"{self.size} bytes are not {len(self.chunks)} pieces of {CHUNK_BYTES}")
        return self

    @property
    def title(self) -> str:
        """The model's name, as events have it."""
        return f"{self.name} {self.version}"

    def span(self, index: int) -> tuple[int, int]:
        """First byte of a piece, and the one after its last."""
        return index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, self.size)

    def content(self) -> dict[str, Any]:
        """The envelope's content."""
        return self.model_dump(by_alias=True, mode="json", exclude_none=True)


def unwrap(payload: bytes) -> tuple[int, bytes]:
    """Number and bytes of a piece; whether they are what was ordered is for ``Download`` to judge."""
    return int.from_bytes(payload[:INDEX_BYTES], "big"), payload[INDEX_BYTES:]


def parse(content: Mapping[str, Any]) -> ModelOrder:
    """The order that an envelope holds.

    Raises:
        ControlError: ``malformed``.
    """
    try:
        return ModelOrder.model_validate(content)
    except ValidationError as error:
        raise ControlError(
            "malformed", f"not an order of a model ({first_fault(error)})", "make the order with `talus model push`"
        ) from None


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
            raise ControlError(
                "download", "every piece is right, but the bundle's SHA-256 is not", "push the bundle again"
            )
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
        raise ControlError("download", f"{url} cannot be reached: {in_words(reason)}", hint) from error
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
        reason = in_words(error)
    if len(data) < end - start:
        where = f"after {start + len(data)} of {order.size} bytes"
        hint = "the download goes on where it was; the network or the server is unsteady"
        raise ControlError("download", f"{order.url} broke off {where}: {reason}", hint)
    return data


def _another_file(order: ModelOrder, why: str) -> ControlError:
    return ControlError(
        "download", f"{order.url} holds another file: {why}", "check the address, or make the order anew"
    )
