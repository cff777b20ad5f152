"""No quiet failure on the way out: whatever keeps messages from their listeners is a reason, with real brokers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_support import running_agent, talus, write_config
from broker_support import STATION, Collector, Mosquitto, make_alert, make_message, needs_mosquitto, running, wait_for
from script_support import Publication, Script, answering

from agent.config.broker import MqttSettings
from agent.deliver import reasons as delivery_reasons
from agent.deliver.connection import Subscription
from agent.deliver.delivery import Delivery
from agent.deliver.mqtt import MqttSink, Refusal
from agent.deliver.outbox import Cursor, Outbox, OutboxStats
from agent.deliver.reasons import LinkStatus, of_connection, of_outbox
from agent.deliver.sink import BatchSink
from agent.messages.payloads import Message, Priority, largest_alert
from agent.reasons import Reason

PREFIX = "talus/v1/XX/ABC"
HEALTH = Message(f"{PREFIX}/health", b'{"schema":"talus/health/1"}', Priority.OTHER, retain=True)
WELL = LinkStatus(connected=True, connected_s=1000.0, answered=True, protocol="5", connects=1)
EMPTY = OutboxStats(0, 0, 10**8, 0.0, 0, 0, None, 0, 0, "", 0, ())


@contextlib.contextmanager
def delivering(settings: MqttSettings, folder: Path, subscription: Subscription | None = None) -> Iterator[Delivery]:
    delivery = Delivery(settings, STATION, folder / "outbox.sqlite3", subscription=subscription)
    delivery.start()
    try:
        yield delivery
    finally:
        delivery.close(1.0)


def reasons(outbox: OutboxStats, link: LinkStatus, alert_bytes: int) -> list[Reason]:
    return [*of_connection(link, alert_bytes), *of_outbox(outbox, link)]


def mqtt_of(delivery: Delivery) -> MqttSink:
    assert delivery.mqtt is not None
    return delivery.mqtt


def found(delivery: Delivery) -> dict[str, Reason]:
    """The reasons now, by code."""
    return {reason.code: reason for reason in delivery.health()[2]}


def acl(folder: Path, *lines: str) -> str:
    path = folder / "acl"
    path.write_text("".join(f"topic {line}\n" for line in lines))
    path.chmod(0o600)
    return f"acl_file {path}"


def test_all_is_well_where_nothing_is_wrong() -> None:
    assert reasons(EMPTY, WELL, 1500) == []


@pytest.mark.parametrize(
    ("outbox", "link", "code", "words"),
    [
        ({}, {"connected": False, "error": "no route"}, "broker_unreachable", "no route"),
        ({}, {"answered": False, "connected_s": 11.0}, "nothing_acknowledged", "nothing for 11 s"),
        ({}, {"answered": False, "connected_s": 1.0, "unanswered": 1}, "nothing_acknowledged", "acknowledged nothing"),
        ({}, {"losses": 5}, "connection_unstable", "lost 5 times"),
        ({}, {"orders": "refused"}, "orders_refused", "refuses the subscription"),
        ({}, {"orders": "ignored"}, "orders_ignored", "not listened to"),
        ({}, {"refusals": (Refusal(f"{PREFIX}/alert", "Not authorized", 3, 0.0),)}, "alert_refused", "(3 times)"),
        ({}, {"refusals": (Refusal(f"{PREFIX}/health", "Quota", 1, 0.0),)}, "topic_refused", "XX/ABC/health: Quota"),
        ({}, {"packet_limit": 900}, "packet_limit", "900 bytes at most"),
        ({}, {"unheard_alert_s": 130.0}, "alert_unheard", "2 min ago"),
        ({"set_aside": 1, "set_aside_alerts": 1, "set_aside_reason": "too large"}, {}, "messages_set_aside",
         "1 message refused for good by the broker, 1 of them alerts: too large"),
        ({"depth": 7, "oldest_s": 61.0}, {}, "messages_wait", "7 messages waiting although the broker is there"),
        ({"bytes": 95 * 10**6}, {}, "outbox_full", "95 % full"),
        ({"lost": 2, "lost_age_s": 7300.0}, {}, "messages_dropped", "events or alerts dropped undelivered: 2"),
        ({"moved_aside": (Path("/s/o.corrupt-1"),)}, {}, "outbox_corrupt", "/s/o.corrupt-1"),
    ],
)  # fmt: skip
def test_each_figure_becomes_its_reason(outbox: dict[str, Any], link: dict[str, Any], code: str, words: str) -> None:
    (reason,) = reasons(dataclasses.replace(EMPTY, **outbox), dataclasses.replace(WELL, **link), 1500)
    assert reason.code == code
    assert words in reason.text


def test_what_is_over_or_has_just_begun_is_no_reason() -> None:
    just = dataclasses.replace(WELL, connected_s=5.0, answered=False)
    backlog = dataclasses.replace(EMPTY, depth=1000, oldest_s=90_000.0)
    assert reasons(backlog, just, 1500) == [], "a backlog of yesterday is being sent"
    over = dataclasses.replace(WELL, unheard_alert_s=3700.0, losses=4, packet_limit=1500)
    assert reasons(dataclasses.replace(EMPTY, dropped=9, lost=9, lost_age_s=90_000.0), over, 1500) == []


@needs_mosquitto
def test_an_alert_that_the_access_list_forbids_is_a_reason_until_it_is_delivered(tmp_path: Path) -> None:
    """MQTT 5 says so at once; what waits is sent as soon as a broker with another list is there."""
    allowed = acl(tmp_path, f"write {PREFIX}/availability", f"write {PREFIX}/event", "read talus/#")
    broker = Mosquitto(tmp_path, allowed)
    broker.start()
    try:
        with delivering(broker.settings(), tmp_path) as delivery:
            delivery.put([make_message(1), make_alert(1)])
            wait_for(lambda: "alert_refused" in found(delivery))
            reason = found(delivery)["alert_refused"]
            assert reason.about == f"{PREFIX}/alert"
            assert "Not authorized" in reason.text
            assert delivery.health()[1].refused[0].topic == f"{PREFIX}/alert"
            wait_for(lambda: delivery.outbox.depth == 1, what="the event passed")
            broker.stop()
            acl(tmp_path, f"readwrite {PREFIX}/#")
            broker.start()
            wait_for(lambda: delivery.outbox.depth == 0)
            assert found(delivery).keys() <= {"alert_unheard"}
    finally:
        broker.stop()


@needs_mosquitto
@pytest.mark.parametrize("name", ["health", "availability"])
def test_a_retained_topic_that_is_refused_is_a_reason_until_it_is_taken(tmp_path: Path, name: str) -> None:
    """Nobody far away learns how the station is, or whether it is there."""
    others = [f"write {PREFIX}/{other}" for other in ("availability", "health", "event", "alert") if other != name]
    broker = Mosquitto(tmp_path, acl(tmp_path, *others))
    broker.start()
    try:
        with delivering(broker.settings(), tmp_path) as delivery:
            delivery.publish_retained(HEALTH)
            wait_for(lambda: "topic_refused" in found(delivery))
            assert found(delivery)["topic_refused"].about == f"{PREFIX}/{name}"
            assert "Not authorized" in found(delivery)["topic_refused"].text
            broker.stop()
            acl(tmp_path, f"readwrite {PREFIX}/#")
            broker.start()
            wait_for(lambda: not found(delivery))
            with Collector(broker.settings(), f"{PREFIX}/{name}", session=False) as late:
                wait_for(lambda: late.received)
    finally:
        broker.stop()


@needs_mosquitto
def test_availability_that_is_refused_is_tried_again_on_the_same_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Mosquitto(tmp_path, acl(tmp_path, f"write {PREFIX}/event"))
    broker.start()
    try:
        with delivering(broker.settings(), tmp_path) as delivery:
            wait_for(lambda: "topic_refused" in found(delivery))
            acl(tmp_path, f"readwrite {PREFIX}/#")
            broker.reload()
            wait_for(lambda: not found(delivery))
            assert mqtt_of(delivery).status().connects == 1
    finally:
        broker.stop()


@needs_mosquitto
def test_a_packet_limit_below_an_alert_is_a_reason_from_the_connect_on_and_nothing_is_lost(tmp_path: Path) -> None:
    """It is known before the first alert. What was set aside for its size is sent when a broker takes it."""
    with running(tmp_path, "max_packet_size 900") as small, delivering(small.settings(), tmp_path) as delivery:
        port = small.port
        wait_for(lambda: "packet_limit" in found(delivery))
        assert "900 bytes" in found(delivery)["packet_limit"].text
        delivery.put([make_alert(1), make_message(1)])
        wait_for(lambda: delivery.outbox.depth == 0)
        codes = found(delivery)
        assert codes.keys() == {"packet_limit", "messages_set_aside"}
        assert "2 messages refused for good by the broker, 1 of them alerts" in codes["messages_set_aside"].text
        small.stop()
        wait_for(lambda: not mqtt_of(delivery).status().connected)
        with running(tmp_path, port=port) as large, Collector(large.settings(), session=False) as heard:
            wait_for(lambda: heard.bodies("/alert") or heard.connects > 1 or delivery.outbox.depth == 0)
            wait_for(lambda: delivery.outbox.depth == 0)
            wait_for(lambda: not found(delivery).keys() - {"alert_unheard"})
            assert delivery.health()[0].set_aside == 0


def test_the_largest_alert_is_larger_than_real_ones() -> None:
    alert = make_alert(1)
    assert len(alert.topic) + len(alert.payload) + 64 < largest_alert() < 2000
    assert largest_alert(voters=3) > largest_alert() + 3 * 200


def test_a_broker_that_acknowledges_nothing_is_a_reason_and_stays_one_over_reconnects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_reasons, "GRACE_S", 0.2)

    with Script(answering(lambda _: None)) as server:
        settings = MqttSettings(
            host="127.0.0.1", port=server.port, ack_timeout_s=0.6, backoff_min_s=0.05, backoff_max_s=0.1
        )
        with delivering(settings, tmp_path) as delivery:
            delivery.put([make_alert()])
            wait_for(lambda: "nothing_acknowledged" in found(delivery))
            wait_for(lambda: server.connections > 2)
            for _ in range(50):
                codes = found(delivery)
                assert codes.keys() & {"nothing_acknowledged", "broker_unreachable"}, codes


def test_messages_that_wait_although_the_broker_is_there_are_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Availability is acknowledged, alerts are not; connections come and go meanwhile."""
    monkeypatch.setattr(delivery_reasons, "WAIT_S", 1.0)

    def answer(it: Publication) -> bytes | None:
        return b"" if it.topic.endswith("availability") else None

    with Script(answering(answer)) as server:
        settings = MqttSettings(
            host="127.0.0.1", port=server.port, ack_timeout_s=0.5, backoff_min_s=0.05, backoff_max_s=0.1
        )
        with delivering(settings, tmp_path) as delivery:
            delivery.put([make_alert()])
            wait_for(lambda: "messages_wait" in found(delivery))
            wait_for(lambda: "connection_unstable" in found(delivery))


def test_orders_that_the_broker_does_not_let_through_are_a_reason(tmp_path: Path) -> None:
    subscription = Subscription([f"{PREFIX}/config/set"], lambda _: True, required=False)
    with (
        Script(answering(lambda _: b"")) as server,
        delivering(MqttSettings(host="127.0.0.1", port=server.port), tmp_path, subscription) as delivery,
    ):
        wait_for(lambda: found(delivery).keys() == {"orders_refused"})


@needs_mosquitto
def test_an_alert_without_a_subscriber_is_a_reason_until_one_has_a_subscriber(tmp_path: Path) -> None:
    with running(tmp_path) as broker, delivering(broker.settings(), tmp_path) as delivery:
        delivery.put([make_message(1)])
        wait_for(lambda: mqtt_of(delivery).status().unheard)
        assert not found(delivery), "an event that nobody hears wakes nobody anyway"
        delivery.put([make_alert(1)])
        wait_for(lambda: found(delivery).keys() == {"alert_unheard"})
        assert delivery.health()[1].unheard_alerts == 1
        with Collector(broker.settings(), session=False):
            delivery.put([make_alert(2)])
            wait_for(lambda: not found(delivery))


def test_a_corrupt_outbox_is_named_until_the_operator_has_dealt_with_it(tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite3").write_bytes(os.urandom(5000))
    delivery = Delivery(MqttSettings(host="127.0.0.1", port=1), STATION, tmp_path / "outbox.sqlite3")
    reason = found(delivery)["outbox_corrupt"]
    assert reason.about is not None
    (aside,) = tmp_path.glob("outbox.sqlite3.corrupt-*")
    assert reason.about == str(aside)
    aside.unlink()
    assert "outbox_corrupt" not in found(delivery)
    delivery.outbox.close()


@needs_mosquitto
def test_a_station_that_may_connect_and_not_write_is_degraded_and_says_what_is_refused(tmp_path: Path) -> None:
    """The whole agent: all that it sends waits, and nobody far away can learn of it."""
    with running(tmp_path, acl(tmp_path, "read talus/#")) as broker:
        config = write_config(tmp_path / "site", "", broker.port, source="{kind: simulator, speed: 1}")
        with running_agent("run", "--config", config):
            file = tmp_path / "site" / "state" / "status.json"
            wait_for(lambda: file.exists() and "refuses talus/v1/XX/SLP/health" in file.read_text())
            status, out, _ = talus("status", "--config", config)
            assert status == 1
            assert "DEGRADED" in out.splitlines()[0]
            for name in ("availability", "state", "health"):
                assert f"! the broker refuses talus/v1/XX/SLP/{name}: Not authorized" in out


class HangingSink(BatchSink):
    """Its other side never answers."""

    def __init__(self, cursor: Cursor) -> None:
        super().__init__(cursor)
        self.goes_on = threading.Event()

    def write(self, messages: Sequence[Message]) -> None:
        self.goes_on.wait(100)


def test_a_way_out_that_hangs_is_a_reason_until_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.deliver.sink.HANGS_S", 0.1)
    outbox = Outbox(tmp_path / "o.db", sinks=("file",))
    sink = HangingSink(outbox.cursor("file"))
    sink.start()
    outbox.put([make_alert()])
    wait_for(sink.reasons)
    [reason] = sink.reasons()
    assert (reason.code, reason.about) == ("output_failed", "file")
    assert "is not written yet; 1 message waits" in reason.text
    sink.goes_on.set()
    wait_for(lambda: not sink.reasons())
    assert sink.stop()
    outbox.close()
