"""What every operator's command does at a broker: listen to a station's topics while it has something published."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from agent.config.broker import MqttSettings
from agent.deliver.connection import REFUSED, Connection, Received, Subscription
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from agent.messages.payloads import topic
from agent.types import StationId

QUIET_S = 1.0
"""Retained messages come at once; after this long without one there are no more."""


Receive: TypeAlias = Callable[[str, bytes], None]
"""Is given the rest of a topic below the station's, and the payload."""


class Listening:
    """A connection that hears some topics of a station. ``pump`` and ``drain`` pass on what comes."""

    def __init__(
        self, settings: MqttSettings, station: StationId, names: Sequence[str], receive: Receive, waker: Waker
    ) -> None:
        """Connect and subscribe to the station's topics ``names``.

        Raises:
            DeliveryError: the broker does not answer, or does not let us listen.
        """
        self._settings, self._receive = settings, receive
        self._root = topic(settings.prefix, station, "")
        self._newest = 0.0
        subscription = Subscription(tuple(self._root + name for name in names), self._hear)
        client_id = f"talus-desk-{secrets.token_hex(4)}"
        self._connection = Connection.open(settings, client_id, waker, subscription=subscription)

    def close(self) -> None:
        """Leave the broker."""
        self._connection.close()

    def publish(self, name: str, payload: bytes, *, retain: bool = False, correlation: bytes | None = None) -> int:
        """To one of the station's topics; the token is for ``pump``."""
        return self._connection.publish(self._root + name, payload, retain=retain, correlation=correlation)

    def pump(self, token: int) -> None:
        """Let messages come for a moment.

        Raises:
            DeliveryError: the connection is lost, or the broker refuses the publication ``token``.
        """
        for ack in self._connection.pump(0.1):
            if ack.token == token and ack.code >= REFUSED:
                raise DeliveryError(
                    f"{self._settings.address} refuses the order: {ack.reason}",
                    "may this user write to the station's topics?",
                )

    def drain(self) -> None:
        """Hear all that the broker has retained."""
        begun = time.monotonic()
        while time.monotonic() < max(begun, self._newest) + QUIET_S:
            self._connection.pump(0.1)

    def _hear(self, message: Received) -> bool:
        self._newest = time.monotonic()
        self._receive(message.topic.removeprefix(self._root), message.payload)
        return True


@contextlib.contextmanager
def listening(
    settings: MqttSettings, station: StationId, names: Sequence[str], receive: Receive
) -> Iterator[Listening]:
    """Listen to the station's topics ``names`` for as long as the block lasts.

    Raises:
        DeliveryError: the broker does not answer, or does not let us listen.
    """
    with (
        contextlib.closing(Waker()) as waker,
        contextlib.closing(Listening(settings, station, names, receive, waker)) as desk,
    ):
        yield desk


def read_retained(
    settings: MqttSettings,
    names: Sequence[str],
    receive: Callable[[str, str, bytes], None],
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Hand ``receive`` what the broker has retained under the topics ``names`` of every station: NET.STA, the rest of
    the topic, and the payload. Ends when no more comes, or there is ``enough``.

    Raises:
        DeliveryError: the broker does not answer, or does not let us listen.
    """
    newest = 0.0

    def take(message: Received) -> bool:
        nonlocal newest
        newest = time.monotonic()
        network, _, rest = message.topic.removeprefix(f"{settings.prefix}/").partition("/")
        code, _, name = rest.partition("/")
        receive(f"{network}.{code}", name, message.payload)
        return True

    subscription = Subscription([f"{settings.prefix}/+/+/{name}" for name in names], take)
    with contextlib.closing(Waker()) as waker:
        client_id = f"talus-desk-{secrets.token_hex(4)}"
        with contextlib.closing(Connection.open(settings, client_id, waker, subscription=subscription)) as connection:
            begun = time.monotonic()
            while time.monotonic() < max(begun, newest) + QUIET_S and not enough():
                connection.pump(0.1)
