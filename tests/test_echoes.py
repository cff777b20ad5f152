"""MQTT 3.1.1, whose acknowledgement may hide a refusal: no alert is lost by it without a word, with a real broker and
access lists that forbid all, alerts, or reading."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_support import (
    Collector,
    Mosquitto,
    make_alert,
    make_event,
    make_message,
    needs_mosquitto,
    running,
    wait_for,
)
from script_support import CONNACK_5, Script, publish_parts, read_packet
from test_voice import HEALTH, PREFIX, delivering, found, mqtt_of

from agent.config.broker import MqttSettings
from agent.deliver.delivery import Delivery
from agent.messages.payloads import Message, Priority
from agent.reasons import Reason


def access(folder: Path, *lines: str) -> str:
    """Lines for the broker: who the station is, and what it may."""
    path = folder / "acl"
    path.write_text("user reader\ntopic read talus/#\nuser station\n" + "".join(f"topic {line}\n" for line in lines))
    path.chmod(0o600)
    return f"acl_file {path}"


def old(broker: Mosquitto) -> MqttSettings:
    return broker.settings(protocol="3.1.1", username="station", password="x")  # noqa: S106 - anybody may come


@contextlib.contextmanager
def reading(broker: Mosquitto) -> Iterator[Collector]:
    with Collector(broker.settings(username="reader", password="x"), f"{PREFIX}/#", session=False) as seen:  # noqa: S106
        yield seen


@contextlib.contextmanager
def reporting(delivery: Delivery) -> Iterator[None]:
    """Give it a report again and again, as the monitor does."""
    ended, number = threading.Event(), 0

    def report() -> None:
        nonlocal number
        while not ended.wait(0.05):
            number += 1
            payload = HEALTH.payload[:-1] + b',"seq":%d}' % number
            delivery.publish_retained(Message(HEALTH.topic, payload, Priority.OTHER, retain=True))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come back is told after half a second, and what was acknowledged is deleted at once."""
    monkeypatch.setattr("agent.deliver.echoes.ECHO_S", 0.5)
    monkeypatch.setattr("agent.deliver.mqtt.LINGER_S", 0.0)


NONE = Reason("more", "")
ALERT = make_event(1).id


def alerts(seen: Collector) -> list[str]:
    return [body["id"] for body in seen.bodies("/alert")]


def events(seen: Collector) -> set[str]:
    return {body["id"] for body in seen.bodies("/event")}


def on_disk(delivery: Delivery) -> int:
    return delivery.outbox.read(lambda db: int(db.execute("SELECT count(*) FROM queue").fetchone()[0]))


@needs_mosquitto
def test_where_all_is_allowed_everything_arrives_once_and_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.deliver.mqtt.LINGER_S", 0.0)
    with (
        running(tmp_path, access(tmp_path, f"readwrite {PREFIX}/#")) as broker,
        reading(broker) as seen,
        delivering(old(broker), tmp_path) as delivery,
        reporting(delivery),
    ):
        delivery.put([make_message(n) for n in range(100)] + [make_alert(n) for n in range(100)])
        wait_for(lambda: on_disk(delivery) == 0)
        assert found(delivery) == {}
        wait_for(lambda: len(seen.bodies("/event")) >= 100 and len(seen.bodies("/alert")) >= 100)
        assert len(seen.bodies("/event")) == len(seen.bodies("/alert")) == 100


@needs_mosquitto
@pytest.mark.usefixtures("_soon")
def test_where_alerts_are_dropped_they_wait_as_with_mqtt_5_and_arrive_when_the_list_was_mended(tmp_path: Path) -> None:
    lines = [f"readwrite {PREFIX}/{name}" for name in ("availability", "health", "event")]
    with (
        running(tmp_path, access(tmp_path, *lines, f"read {PREFIX}/alert")) as broker,
        reading(broker) as seen,
        delivering(old(broker), tmp_path) as delivery,
        reporting(delivery),
    ):
        delivery.put([make_message(1), make_alert(1)])
        wait_for(lambda: "alert_refused" in found(delivery))
        assert "does not come back (MQTT 3.1.1)" in found(delivery)["alert_refused"].text
        wait_for(lambda: {*found(delivery)} == {"alert_refused"}, what="what may be written is well")
        wait_for(lambda: events(seen) == {make_event(1).id})
        delivery.put([make_message(2), make_alert(2)])
        wait_for(lambda: events(seen) == {make_event(n).id for n in (1, 2)}, what="events go on")
        assert alerts(seen) == []
        access(tmp_path, f"readwrite {PREFIX}/#")
        broker.reload()
        wait_for(lambda: {*alerts(seen)} == {make_event(n).id for n in (1, 2)})
        wait_for(lambda: found(delivery) == {} and on_disk(delivery) == 0)


@needs_mosquitto
@pytest.mark.usefixtures("_soon")
def test_where_all_is_dropped_the_station_says_so_and_no_alert_is_lost(tmp_path: Path) -> None:
    with (
        running(tmp_path, access(tmp_path, "read talus/#")) as broker,
        reading(broker) as seen,
        delivering(old(broker), tmp_path) as delivery,
        reporting(delivery),
    ):
        wait_for(lambda: "not_confirmed" in found(delivery), what="said before there is an alert")
        delivery.put([make_alert(n) for n in range(3)])
        wait_for(lambda: "; 3 alerts kept" in found(delivery)["not_confirmed"].text)
        assert f"let this account read {PREFIX}/#, or use MQTT 5" in found(delivery)["not_confirmed"].text
        wait_for(lambda: delivery.outbox.depth == 0, what="nothing waits for what will not come")
        broker.stop()
        wait_for(lambda: not delivery.connected)
        assert "not_confirmed" in found(delivery)
        broker.start()
        wait_for(lambda: delivery.connected)
        assert alerts(seen) == []
        with reading(broker) as later:
            access(tmp_path, f"readwrite {PREFIX}/#")
            broker.reload()
            wait_for(lambda: {*alerts(later)} == {make_event(n).id for n in range(3)})
        wait_for(lambda: found(delivery) == {} and on_disk(delivery) == 0)


@needs_mosquitto
@pytest.mark.usefixtures("_soon")
def test_where_the_station_may_not_read_alerts_arrive_at_once_and_once(tmp_path: Path) -> None:
    """It cannot tell whether they do; nobody is woken every minute for that."""
    with (
        running(tmp_path, access(tmp_path, f"write {PREFIX}/#")) as broker,
        reading(broker) as seen,
        delivering(old(broker), tmp_path) as delivery,
        reporting(delivery),
    ):
        delivery.put([make_alert(1)])
        wait_for(lambda: "alert" in found(delivery).get("not_confirmed", NONE).text)
        before = len(seen.payloads("/health"))
        wait_for(lambda: len(seen.payloads("/health")) > before + 40, what="two seconds of reports")
        assert alerts(seen) == [ALERT]
        access(tmp_path, f"readwrite {PREFIX}/#")
        broker.reload()
        wait_for(lambda: found(delivery) == {} and on_disk(delivery) == 0)
        wait_for(lambda: len(alerts(seen)) > 1, what="once more, now that it can be seen")
        assert alerts(seen) == [ALERT, ALERT]


@needs_mosquitto
@pytest.mark.usefixtures("_soon")
def test_what_an_old_broker_may_have_dropped_is_sent_again_when_it_is_replaced_by_one_with_mqtt_5(
    tmp_path: Path,
) -> None:
    closed = access(tmp_path, f"write {PREFIX}/availability")
    with running(tmp_path, closed) as broker, delivering(old(broker), tmp_path) as delivery:
        delivery.put([make_alert(1)])
        wait_for(lambda: "1 alert kept" in found(delivery).get("not_confirmed", NONE).text)
        mqtt_of(delivery)._settings = broker.settings(username="station", password="x")  # noqa: S106
        access(tmp_path, f"write {PREFIX}/#")
        broker.stop()
        broker.start()
        wait_for(lambda: mqtt_of(delivery).status().unheard_alerts == 1, what="it is taken, and nobody is subscribed")
        wait_for(lambda: {*found(delivery)} == {"alert_unheard"} and on_disk(delivery) == 0)


@needs_mosquitto
@pytest.mark.usefixtures("_soon")
def test_after_a_kill_a_dropped_alert_is_still_there(tmp_path: Path) -> None:
    with running(tmp_path, access(tmp_path, "read talus/#")) as broker:
        with delivering(old(broker), tmp_path) as delivery:
            delivery.put([make_alert(1)])
            wait_for(lambda: "1 alert kept" in found(delivery).get("not_confirmed", NONE).text)
        access(tmp_path, f"readwrite {PREFIX}/#")
        broker.reload()
        with reading(broker) as seen, delivering(old(broker), tmp_path) as delivery:
            wait_for(lambda: alerts(seen) == [ALERT])
            wait_for(lambda: on_disk(delivery) == 0)


def granted(body: bytes) -> bytes:
    return b"\x90\x03" + body[:2] + b"\x01"


def refused(body: bytes) -> bytes:
    return b"\x90\x03" + body[:2] + b"\x80"


def old_broker(
    answer: Callable[[bytes], bytes | None], back: Callable[[str, bytes], bool] = lambda *_: False
) -> Callable[[socket.socket], None]:
    """A broker of MQTT 3.1.1 that acknowledges everything, and hands back what ``back`` says by topic and payload.
    ``answer``: to a SUBSCRIBE, None: it hangs up."""

    def serve(client: socket.socket) -> None:
        while True:
            kind, body = read_packet(client)
            if kind == 0x10:
                client.sendall(b"\x20\x02\x00\x00")
            elif kind == 0x82:
                said = answer(body)
                if said is None:
                    return
                client.sendall(said)
            elif kind & 0xF0 == 0x30:
                topic, number, payload = publish_parts(body)
                client.sendall(b"\x40\x02" + number)
                if back(topic, payload):
                    name = len(topic).to_bytes(2, "big") + topic.encode()
                    length = len(name) + len(payload)
                    client.sendall(bytes([0x30, length & 0x7F | 0x80, length >> 7]) + name + payload)

    return serve


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("answer", [refused, lambda _: None], ids=["refused", "hangs up"])
def test_a_broker_that_refuses_the_subscription_or_hangs_up_on_it_gets_all_and_is_doubted(
    tmp_path: Path, answer: Any
) -> None:
    with Script(old_broker(answer)) as server:
        settings = MqttSettings(
            host="127.0.0.1", port=server.port, protocol="3.1.1", backoff_min_s=0.05, backoff_max_s=0.1
        )
        with delivering(settings, tmp_path) as delivery, reporting(delivery):
            delivery.put([make_alert(1), make_message(1)])
            wait_for(lambda: delivery.outbox.depth == 0 and "not_confirmed" in found(delivery))
            assert mqtt_of(delivery).status().connects <= 5, "it stops to ask"


@pytest.mark.usefixtures("_soon")
def test_a_message_that_is_dropped_for_what_it_is_does_not_hold_up_the_others(tmp_path: Path) -> None:
    large = make_message(1)
    large = dataclasses.replace(large, payload=large.payload[:-1] + b',"more":"' + b"x" * 9000 + b'"}')
    came: set[str] = set()

    def takes(topic: str, payload: bytes) -> bool:
        if len(payload) > 8000:
            return False
        if topic.endswith("/event"):
            came.add(json.loads(payload)["id"])
        return True

    with Script(old_broker(granted, takes)) as server:
        settings = MqttSettings(host="127.0.0.1", port=server.port, protocol="3.1.1")
        with delivering(settings, tmp_path) as delivery, reporting(delivery):
            delivery.put([large])
            wait_for(lambda: "topic_refused" in found(delivery))
            delivery.put([make_message(n) for n in range(2, 30)])
            wait_for(lambda: len(came) == 28)
            wait_for(lambda: delivery.outbox.depth == 1)


@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_broker_that_was_too_busy_for_mqtt_5_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs_up: bool
) -> None:
    """One that says nothing is taken for an old one; the station must not stay with MQTT 3.1.1 for that, nor be
    ``offline`` while it asks."""
    monkeypatch.setattr("agent.deliver.mqtt.TRY_5_S", 0.5)
    goodbyes: list[str] = []
    heard_5 = 0
    spoken: list[str] = []

    def serve(client: socket.socket) -> None:
        nonlocal heard_5
        while True:
            kind, body = read_packet(client)
            if kind == 0x10 and body[6] == 5:
                heard_5 += 1
                spoken.append("5")
                if heard_5 == 1:
                    if hangs_up:
                        return
                    continue
                client.sendall(CONNACK_5)
            elif kind == 0x10:
                spoken.append("3.1.1")
                client.sendall(b"\x20\x02\x00\x00")
            elif kind == 0x82:
                client.sendall(refused(body))
            elif kind & 0xF0 == 0x30:
                client.sendall(b"\x40\x02" + publish_parts(body)[1])
            elif kind == 0xE0:
                goodbyes.append("3.1.1")

    with Script(serve) as server:
        settings = MqttSettings(host="127.0.0.1", port=server.port, connect_timeout_s=10.0 if hangs_up else 5.0)
        with delivering(settings, tmp_path) as delivery:
            delivery.put([make_alert(1)])
            wait_for(lambda: mqtt_of(delivery).status().protocol == "5")
            assert spoken == ["5", "3.1.1", "5"]
            wait_for(lambda: len(goodbyes) == 1)  # the connection of MQTT 3.1.1 ended in order
            wait_for(lambda: delivery.outbox.depth == 0)
            wait_for(lambda: not mqtt_of(delivery).status().unseen)
