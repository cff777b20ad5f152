"""The operator's side of models and commands: publish an order, send what the station asks for, hear the outcome."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agent.control.envelope import Body, seal
from agent.control.keys import SigningKey
from agent.control.model_order import CHUNK_BYTES, KIND, Promote, order_of
from agent.errors import ControlError, DataError, DeliveryError
from agent.inference.bundle import open_bundle, pack
from agent.messages import topic
from agent.mqtt import REFUSED, Connection, Received, Subscription
from agent.mqtt_settings import MqttSettings
from agent.schema import ModelReport, Response, parse
from agent.types import NS, StationId
from agent.waker import Waker

INDEX_BYTES = 4
_QUIET_S = 1.0


@dataclass(slots=True)
class _Heard:
    """What came in since the last look."""

    messages: list[Received] = field(default_factory=list)
    newest: float = 0.0

    def take(self) -> list[Received]:
        taken, self.messages = self.messages, []
        return taken


@dataclass(frozen=True, slots=True)
class Offer:
    """A signed order for a bundle, and the bundle."""

    payload: bytes
    revision: int
    sha256: str
    zipped: bytes


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
    return Offer(seal(body, key), body.revision, order.sha256, zipped)


def command(key: SigningKey, station: StationId, content: dict[str, object]) -> bytes:
    """A signed command; whoever finds it later can do nothing with it after ten minutes."""
    return seal(_body("command", station, content, 600.0), key)


def _body(kind: str, station: StationId, content: dict[str, object], valid_s: float) -> Body:
    now_ns = time.time_ns()
    # Milliseconds rise from order to order, whoever signs, and say when by themselves.
    return Body(kind, (station.short,), now_ns // 1_000_000, now_ns, now_ns + round(valid_s * NS), content)


def push(
    settings: MqttSettings,
    station: StationId,
    offered: Offer,
    *,
    until: Collection[str],
    timeout_s: float,
    tell: Callable[[ModelReport], None],
) -> ModelReport:
    """Publish the order and send the pieces that the station asks for, until its phase is one of ``until``, refused or
    rolled back.

    Raises:
        DeliveryError: the broker does not take it.
        ControlError: refused by the station before it began, or ``timeout``.
    """
    envelope = hashlib.sha256(offered.payload).hexdigest()
    with _listening(settings, station, "model/reported") as (connection, heard):
        token = connection.publish(topic(settings.prefix, station, "model/set"), offered.payload, retain=True)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            _pump(connection, token, settings)
            for message in heard.take():
                report = _report(message)
                if report is None:
                    continue
                if report.refused is not None and report.refused.envelope == envelope:
                    raise ControlError(report.refused.kind or "refused", report.refused.reason or "refused")
                if report.revision != offered.revision:
                    continue
                tell(report)
                for index in report.missing:
                    piece = offered.zipped[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                    place = topic(settings.prefix, station, "model/chunk")
                    connection.publish(place, index.to_bytes(INDEX_BYTES, "big") + piece)
                if report.phase in {*until, "refused", "rolled_back"}:
                    return report
    raise ControlError(
        "timeout", f"{station.short} is not done within {timeout_s:g} s",
        "run the same command again: what it has got is not sent twice; `talus model show` says how it stands",
    )  # fmt: skip


def look(settings: MqttSettings, station: StationId) -> ModelReport | None:
    """The station's last word on its model.

    Raises:
        DeliveryError: the broker does not answer.
    """
    newest = None
    with _listening(settings, station, "model/reported") as (connection, heard):
        begun = time.monotonic()
        while time.monotonic() < max(begun, heard.newest) + _QUIET_S:
            connection.pump(0.1)
            for message in heard.take():
                newest = _report(message) or newest
    return newest


def ask(
    settings: MqttSettings, station: StationId, payload: bytes, timeout_s: float
) -> tuple[Response, dict[int, bytes]]:
    """Publish a command and wait for its answer, and for the pieces of evidence that it announces.

    Raises:
        DeliveryError: the broker does not take it.
        ControlError: ``timeout``.
    """
    request = hashlib.sha256(payload).hexdigest()
    answer, pieces = None, dict[int, bytes]()
    with _listening(settings, station, "response", "evidence/#") as (connection, heard):
        token = connection.publish(topic(settings.prefix, station, "command"), payload)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            _pump(connection, token, settings)
            for message in heard.take():
                if message.topic.endswith("/response"):
                    with contextlib.suppress(DataError):
                        said = parse(Response, message.payload)
                        answer = said if said.request == request else answer
                elif (number := message.topic.rpartition("/")[2]).isdigit() and len(number) < 6:
                    pieces[int(number)] = message.payload
            expected = answer.result.get("pieces") if answer is not None else None
            if answer is not None and (not isinstance(expected, int) or len(pieces) >= expected):
                return answer, pieces
    raise ControlError("timeout", f"{station.short} has not answered within {timeout_s:g} s", "is it online?")


def _report(message: Received) -> ModelReport | None:
    try:
        return parse(ModelReport, message.payload)
    except DataError:
        return None


def _pump(connection: Connection, token: int, settings: MqttSettings) -> None:
    for ack in connection.pump(0.1):
        if ack.token == token and ack.code >= REFUSED:
            raise DeliveryError(
                f"{settings.address} refuses the order: {ack.reason}", "may this user write to the station's topics?"
            )


@contextlib.contextmanager
def _listening(settings: MqttSettings, station: StationId, *names: str) -> Iterator[tuple[Connection, _Heard]]:
    heard = _Heard()

    def receive(message: Received) -> bool:
        heard.newest = time.monotonic()
        heard.messages.append(message)
        return True

    filters = tuple(topic(settings.prefix, station, name) for name in names)
    with contextlib.closing(Waker()) as waker:
        connection = Connection.open(
            settings, f"talus-desk-{secrets.token_hex(4)}", waker, subscription=Subscription(filters, receive)
        )
        try:
            yield connection, heard
        finally:
            connection.close()
