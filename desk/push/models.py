"""The operator's side of models and commands: publish an order, send what the station asks for, hear the outcome."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from agent.config.broker import MqttSettings
from agent.errors import ControlError, DataError
from agent.inference.bundle import open_bundle, pack
from agent.messages.payloads import MAX_EVIDENCE, ONLINE, PIECE_BYTES, evidence_topic
from agent.messages.schema import ModelReport, Response, parse
from agent.remote.gate import Body
from agent.remote.model_order import CHUNK_BYTES, INDEX_BYTES, KIND, ModelOrder, Promote
from agent.remote.model_order import parse as parse_order
from agent.types import NS, StationId
from desk.push.listening import listening
from desk.push.presence import Waiting
from desk.push.signing import SigningKey, seal

_REPORTED = "model/reported"
_PIECES = frozenset(str(number) for number in range(MAX_EVIDENCE // PIECE_BYTES))
"""Of a record: what a broker may make an operator's machine hold."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A signed order for a bundle, and the bundle."""

    payload: bytes
    revision: int
    sha256: str
    zipped: bytes
    title: str
    """Name and version of the bundle."""


def offer(
    bundle: Path, key: SigningKey, station: StationId, *, promote: Promote, url: str | None, valid_days: float
) -> Offer:
    """Pack and sign.

    Raises:
        BundleError: not a bundle.
        ControlError: it is too large, or the address is not https.
    """
    zipped = pack(bundle)
    manifest = open_bundle(bundle).manifest
    order = order_of(zipped, manifest.name, manifest.version, promote=promote, url=url)
    body = _body(KIND, station, order.content(), valid_days * 86_400)
    return Offer(seal(body, key), body.revision, order.sha256, zipped, order.title)


def wrap(index: int, piece: bytes) -> bytes:
    """A piece as it travels: its number, most significant byte first, and its bytes."""
    return index.to_bytes(INDEX_BYTES, "big") + piece


def order_of(
    zipped: bytes, name: str, version: str, *, promote: Promote = "auto", url: str | None = None
) -> ModelOrder:
    """The order for a bundle's zip.

    Raises:
        ControlError: too large, or an address that is not https.
    """
    pieces = [zipped[start : start + CHUNK_BYTES] for start in range(0, len(zipped), CHUNK_BYTES)]
    chunks = [hashlib.sha256(piece).hexdigest() for piece in pieces]
    return parse_order(
        {
            "name": name,
            "version": version,
            "sha256": hashlib.sha256(zipped).hexdigest(),
            "bytes": len(zipped),
            "chunks": chunks,
            "promote": promote,
            **({} if url is None else {"url": url}),
        }
    )


def command(key: SigningKey, station: StationId, content: dict[str, object]) -> bytes:
    """A signed command; whoever finds it later can do nothing with it after ten minutes."""
    return seal(_body("command", station, content, 600.0), key)


def _body(kind: str, station: StationId, content: dict[str, object], valid_s: float) -> Body:
    now_ns = time.time_ns()
    # Milliseconds rise from order to order, whoever signs, and say when by themselves.
    return Body(
        kind=kind,
        stations=(station.short,),
        revision=now_ns // 1_000_000,
        issued_ns=now_ns,
        expires_ns=now_ns + round(valid_s * NS),
        content=content,
    )


def push(
    wait: Waiting,
    offered: Offer,
    *,
    until: Collection[str],
    tell: Callable[[ModelReport], None],
) -> ModelReport:
    """Publish the order and send the pieces that the station asks for, until its phase is one of ``until``, refused or
    rolled back.

    Raises:
        DeliveryError: the broker does not take it.
        ControlError: refused by the station before it began, or ``timeout``.
    """
    envelope = hashlib.sha256(offered.payload).hexdigest()
    reports: deque[ModelReport] = deque()
    answered = False
    with listening(wait.settings, wait.station, (_REPORTED,), _into(reports)) as desk:
        token = desk.publish("model/set", offered.payload, retain=True)
        wait.begin(f"the order for {offered.title}")
        while wait.goes_on(answered=answered):
            desk.pump(token)
            while reports:
                report = reports.popleft()
                if report.refused is not None and report.refused.envelope == envelope:
                    raise ControlError(report.refused.kind or "refused", report.refused.reason or "refused")
                if report.revision != offered.revision:
                    continue
                answered = True
                tell(report)
                for index in report.missing:
                    piece = offered.zipped[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                    desk.publish("model/chunk", wrap(index, piece))
                if report.phase in {*until, "refused", "rolled_back"}:
                    return report
    raise wait.over(
        answered=answered,
        hint="run the same command again: what it has got is not sent twice; `talus model show` says how it stands",
    )


def look(settings: MqttSettings, station: StationId) -> ModelReport | None:
    """The station's last word on its model.

    Raises:
        DeliveryError: the broker does not answer.
    """
    reports: deque[ModelReport] = deque(maxlen=1)
    with listening(settings, station, (_REPORTED,), _into(reports)) as desk:
        desk.drain()
    return reports[0] if reports else None


def ask(wait: Waiting, payload: bytes, what: str, event: str | None = None) -> tuple[Response, dict[int, bytes]]:
    """Publish a command and wait for its answer, and for the pieces of the record of ``event`` that it announces.

    A broker does not keep a command for a station that is not there: it is published again whenever the station comes
    online meanwhile. The station carries it out once.

    Raises:
        DeliveryError: the broker does not take it.
        ControlError: ``timeout``.
    """
    request = hashlib.sha256(payload).hexdigest()
    answers: list[Response] = []
    pieces: dict[int, bytes] = {}
    online = 0

    def receive(name: str, payload: bytes) -> None:
        nonlocal online
        number = name.rpartition("/")[2]
        if name == "availability":
            online += payload == ONLINE.encode()
        elif name == "response":
            with contextlib.suppress(DataError):
                answer = parse(Response, payload)
                if answer.request == request:
                    answers.append(answer)
        elif number in _PIECES and len(payload) <= PIECE_BYTES:
            pieces[int(number)] = payload

    names = ("availability", "response", *(() if event is None else (f"{evidence_topic(event)}/+",)))
    with listening(wait.settings, wait.station, names, receive) as desk:
        token = desk.publish("command", payload, correlation=bytes.fromhex(request))
        wait.begin(f"the command {what}")
        told = online
        while wait.goes_on(answered=bool(answers)):
            desk.pump(token)
            if online != told:
                told = online
                desk.publish("command", payload, correlation=bytes.fromhex(request))
            expected = answers[0].result.get("pieces") if answers else None
            if answers and (not isinstance(expected, int) or len(pieces) >= expected):
                return answers[0], pieces
    raise wait.over(answered=bool(answers), hint="ask again when it can answer")


def _into(reports: deque[ModelReport]) -> Callable[[str, bytes], None]:
    """What a station says of its model; what is no report is passed over."""

    def receive(_: str, payload: bytes) -> None:
        with contextlib.suppress(DataError):
            reports.append(parse(ModelReport, payload))

    return receive
