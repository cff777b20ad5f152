"""Delivery over real brokers: nothing lost, order kept, and every refusal noticed and survived."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from broker_support import (
    STATION,
    Collector,
    Mosquitto,
    first_order,
    make_alert,
    make_event,
    make_message,
    needs_mosquitto,
    own_port,
    running,
    stamp,
    wait_for,
)
from certificates_support import Authority
from script_support import CONNACK_5, Publication, Script, answering, read_packet

from agent.config.broker import MqttConfig, MqttSettings, TlsConfig
from agent.deliver.connection import Connection, Subscription
from agent.deliver.mqtt import MOST_REPEATS, MqttSink
from agent.deliver.outbox import Outbox
from agent.deliver.sockets import Waker
from agent.errors import ConfigError, DeliveryError
from agent.messages.payloads import Message, Priority, summary_message
from demo import broker as broker_module
from demo.broker import local_broker

ROOT = Path(__file__).parent.parent
RIGHT, WRONG = "right-secret", "wrong-secret"
AVAILABILITY = "talus/v1/XX/ABC/availability"


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


@pytest.fixture
def _long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged is sent again after a lost connection, however long ago that was."""
    monkeypatch.setattr("agent.deliver.mqtt.LINGER_S", 3600.0)


@contextlib.contextmanager
def linked(settings: MqttSettings, outbox: Outbox) -> Iterator[MqttSink]:
    link = MqttSink(settings, outbox.cursor("mqtt"), STATION)
    link.start()
    try:
        yield link
    finally:
        link.stop(2.0)


def open_connection(settings: MqttSettings, client_id: str = "test", **options: Any) -> Connection:
    return Connection.open(settings, client_id, Waker(), **options)


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_what_is_put_arrives_and_leaves_the_outbox(tmp_path: Path, outbox: Outbox, protocol: Any) -> None:
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:
        with linked(broker.settings(protocol=protocol), outbox) as link:
            outbox.put([make_message(n) for n in range(50)])
            wait_for(lambda: outbox.depth == 0)
            assert link.status().protocol == protocol
            outbox.put([make_alert(1)])
            wait_for(lambda: collector.bodies("/alert"))
        bodies = collector.bodies("/event")
        assert [body["seq"] for body in bodies] == sorted(body["seq"] for body in bodies)
        assert len(bodies) == 50
        handed = [body["timing"]["handed"] for body in bodies]
        assert all(body["timing"]["decided"] < at for body, at in zip(bodies, handed, strict=True))


@needs_mosquitto
def test_a_broker_that_stops_and_starts_in_mid_stream_costs_nothing(tmp_path: Path, outbox: Outbox) -> None:
    """A broker with persistence, so that what it has acknowledged is its own to keep; killed and stopped by turns."""
    lines = ("persistence true", f"persistence_location {tmp_path}/", "autosave_interval 1", "autosave_on_changes true")
    broker = Mosquitto(tmp_path)
    config = tmp_path / f"mosquitto-{broker.port}.conf"
    config.write_text(config.read_text().replace("persistence false", "\n".join(lines)))
    broker.start()
    try:
        with Collector(broker.settings(backoff_max_s=0.1)) as collector, linked(broker.settings(), outbox):
            for n in range(40):
                for revision, phase in enumerate(("new", "update", "update", "end")):
                    outbox.put([make_message(n, revision, phase)])  # type: ignore[arg-type]
                if n % 10 == 5:
                    broker.stop()
                    time.sleep(0.1)
                    broker.start()
            wait_for(lambda: outbox.depth == 0, what="everything acknowledged")
            wait_for(lambda: len(first_order(collector.bodies("/event"))) == 40, what="every event arrived")
            wait_for(lambda: all(len(r) == 4 for r in first_order(collector.bodies("/event")).values()))
            order = first_order(collector.bodies("/event"))
        assert all(revisions == [0, 1, 2, 3] for revisions in order.values()), order
    finally:
        broker.stop()


@needs_mosquitto
@pytest.mark.usefixtures("_long_memory")
def test_what_a_broker_acknowledged_just_before_it_crashed_is_sent_again(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first subscriber's session dies with it; what went to it is there again for the next one."""
    subscribed = threading.Event()

    def delays(*_: float) -> Iterator[float]:
        while subscribed.wait(100):
            yield 0.05

    monkeypatch.setattr("agent.deliver.mqtt.delays", delays)
    broker = Mosquitto(tmp_path)
    broker.start()
    try:
        with linked(broker.settings(), outbox) as link:
            outbox.put([make_message(1, 0), make_message(1, 1, "end"), make_alert(1)])
            wait_for(lambda: link.status().acknowledged == 3 and outbox.depth == 0)
            broker.kill()
            wait_for(lambda: not link.status().connected)
            assert outbox.depth == 3
            broker.start()
            with Collector(broker.settings(), session=False) as collector:
                subscribed.set()
                wait_for(lambda: link.status().acknowledged >= 6 and outbox.depth == 0)
                wait_for(lambda: collector.bodies("/alert") and len(collector.bodies("/event")) == 2)
        assert first_order(collector.bodies("/event")) == {make_event(1).id: [0, 1]}
    finally:
        subscribed.set()
        broker.stop()


@needs_mosquitto
@pytest.mark.usefixtures("_long_memory")
def test_a_broker_that_crashes_again_and_again_does_not_get_the_same_for_ever(tmp_path: Path, outbox: Outbox) -> None:
    broker = Mosquitto(tmp_path)
    with linked(broker.settings(), outbox) as link:
        outbox.put([make_message(1)])
        for round_ in range(MOST_REPEATS + 1):
            broker.start()
            wait_for(lambda: link.status().connected and outbox.depth == 0)
            broker.kill()
            wait_for(lambda: not link.status().connected)
            assert outbox.depth == (round_ < MOST_REPEATS)


@needs_mosquitto
def test_refused_credentials_are_not_a_connection(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", passwords, "slope", RIGHT], check=True)
    with running(tmp_path, f"password_file {passwords}", anonymous=False) as broker:
        for protocol in ("5", "3.1.1"):
            wrong = broker.settings(username="slope", password=WRONG, protocol=protocol)
            with pytest.raises(DeliveryError, match="refused the connection: Not authorized"):
                open_connection(wrong)
        with linked(wrong, outbox) as link:
            outbox.put([make_alert()])
            wait_for(lambda: link.status().error)
            time.sleep(0.5)
            assert not link.status().connected
            assert link.status().connects == 0
            assert link.alive
            assert outbox.depth == 1
        assert "access list" in caplog.text or "password" in caplog.text
        assert WRONG not in caplog.text + repr(wrong)
        refusals = [record for record in caplog.records if "refused" in record.getMessage()]
        assert len(refusals) == 1, "the same refusal is not repeated in the log at every attempt"
        with linked(broker.settings(username="slope", password=RIGHT), outbox):
            wait_for(lambda: outbox.depth == 0)


@needs_mosquitto
def test_a_password_that_was_changed_during_an_outage_is_read_anew(tmp_path: Path, outbox: Outbox) -> None:
    """The broker's password was changed while the station was cut off: it is enough to write it into the file."""
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    subprocess.run(["mosquitto_passwd", "-c", "-b", passwords, "slope", RIGHT], check=True)
    passwords.chmod(0o600)
    secret.write_text(f"{WRONG}\n")
    with running(tmp_path, f"password_file {passwords}", anonymous=False) as broker:
        config = MqttConfig.model_validate(
            {"host": "127.0.0.1", "port": broker.port, "username": "slope", "password_file": str(secret)}
        )
        settings = config.settings("talus-XX.ABC").model_copy(update={"backoff_min_s": 0.05, "backoff_max_s": 0.1})
        with linked(settings, outbox) as link:
            outbox.put([make_alert(1)])
            wait_for(lambda: link.status().error)
            secret.unlink()
            secret.write_text(f"{RIGHT}\n")
            wait_for(lambda: outbox.depth == 0)


@needs_mosquitto
def test_availability_tells_lost_from_stopped(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, "tests")
        from broker_support import STATION, MqttSettings
        from agent.deliver.mqtt import MqttSink
        from agent.deliver.outbox import MAIN, Outbox
        settings = MqttSettings(host="127.0.0.1", port=int(sys.argv[2]))
        link = MqttSink(settings, Outbox(Path(sys.argv[1])).cursor("mqtt"), STATION)
        link.start()
        sys.stdin.readline()
        link.stop()
    """)
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:

        def publisher() -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", code, str(tmp_path / "o.db"), str(broker.port)]
            return subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)

        with publisher() as process:
            wait_for(lambda: collector.payloads("availability") == [b"online"])
            process.kill()
        wait_for(lambda: collector.payloads("availability") == [b"online", b"offline"])
        with Collector(broker.settings(), AVAILABILITY, session=False) as late:
            wait_for(lambda: late.received)
            assert [(m.payload, m.retain) for m in late.received] == [(b"offline", True)]
        with publisher() as process:
            wait_for(lambda: len(collector.payloads("availability")) == 3)
            process.communicate(b"\n")
        wait_for(lambda: len(collector.payloads("availability")) == 4)
        assert collector.payloads("availability")[2:] == [b"online", b"stopped"]
        with Collector(broker.settings(), AVAILABILITY, session=False) as late:
            wait_for(lambda: late.received)
            assert [(m.payload, m.retain) for m in late.received] == [(b"stopped", True)], "it is retained"


@needs_mosquitto
def test_retained_values_are_published_again_to_a_broker_that_forgot_them(tmp_path: Path) -> None:
    """State from memory, the last event from disk even after a restart of the agent; events are never retained."""
    state = Message("talus/v1/XX/ABC/state", b'{"schema":"talus/state/1"}', Priority.OTHER, retain=True)
    box = Outbox(tmp_path / "o.db")
    with running(tmp_path) as broker:
        with linked(broker.settings(), box) as link:
            link.publish_retained(state)
            box.put([make_message(7), summary_message(make_event(7), stamp())])
            wait_for(lambda: box.depth == 0 and link.status().acknowledged >= 3)
            broker.kill()
            wait_for(lambda: not link.status().connected)
            link.publish_retained(dataclasses.replace(state, payload=b'{"newer":1}'))
            broker.start()
            wait_for(lambda: link.status().connects == 2)
            wait_for(lambda: link.status().acknowledged >= 5)
            with Collector(broker.settings(), session=False) as late:
                wait_for(lambda: len(late.received) >= 3)
                time.sleep(0.2)
                kept = {m.topic.rsplit("/", 1)[1]: m.payload for m in late.received if m.retain}
            assert kept.keys() == {"availability", "state", "last_event"}
            assert kept["state"] == b'{"newer":1}'
        box.close()
        broker.kill()
        broker.start()
        box = Outbox(tmp_path / "o.db")
        with linked(broker.settings(), box), Collector(broker.settings(), session=False) as late:
            wait_for(lambda: late.payloads("last_event"))
            assert json.loads(late.payloads("last_event")[0])["id"] == make_event(7).id
        box.close()


@needs_mosquitto
def test_alerts_that_the_disk_refuses_arrive_in_order_and_once_stored_as_copies(tmp_path: Path, outbox: Outbox) -> None:
    """A full disk must not keep a warning from those below the slope, nor a broker that is away for a while."""
    alerts = [make_alert(n) for n in range(4)]
    with running(tmp_path) as broker, linked(broker.settings(), outbox) as link, Collector(broker.settings()) as seen:
        wait_for(lambda: link.status().connected and seen.connects > 0)
        for alert in alerts[:3]:
            link.send_now(alert)
        wait_for(lambda: len(seen.bodies("/alert")) == 3)
        broker.stop()
        wait_for(lambda: not link.status().connected)
        link.send_now(alerts[3])
        broker.start()
        wait_for(lambda: link.status().acknowledged == 4)
        assert outbox.stats().depth == 0, "none of it was on disk"
        wait_for(lambda: seen.connects > 1)
        outbox.put(alerts[:3])
        wait_for(lambda: len(seen.bodies("/alert")) >= 6 and outbox.depth == 0)
    bodies = seen.bodies("/alert")
    said = [{**body, "timing": {**body["timing"], "handed": None}} for body in bodies]
    assert [body["id"] for body in said[:3]] == [json.loads(alert.payload)["id"] for alert in alerts[:3]]
    assert said[:3] == said[-3:], "a copy differs in when it was handed over, and in nothing else"
    assert all(body["timing"]["handed"] for body in bodies)


@needs_mosquitto
def test_an_alert_that_no_one_will_take_holds_up_no_other_and_none_hides_what_is_retained(
    tmp_path: Path, outbox: Outbox
) -> None:
    giant = dataclasses.replace(make_alert(0), payload=bytes(4000))
    with (
        running(tmp_path, "max_packet_size 3000") as broker,
        linked(broker.settings(), outbox) as link,
        Collector(broker.settings()) as seen,
    ):
        wait_for(lambda: link.status().connected and seen.connects > 0)
        for alert in (giant, make_alert(1)):
            link.send_now(alert)
        outbox.put([summary_message(make_event(1), stamp())])
        wait_for(lambda: len(seen.bodies("/alert")) == 1 and seen.bodies("/last_event"))
        assert link.status().connects == 1
        assert "larger than" in str(link.status().error)


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
def test_a_broker_that_knows_only_3_1_1(outbox: Outbox, protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """amqtt refuses MQTT 5; the link falls back and delivers."""
    pytest.importorskip("amqtt")
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    with local_broker() as address:
        assert address.program == "amqtt"
        assert MqttSettings.from_url(address.url) == MqttSettings(
            host=address.host, port=address.port, protocol="3.1.1"
        )
        settings = MqttSettings(
            host=address.host, port=address.port, protocol=protocol, backoff_min_s=0.05, connect_timeout_s=0.5
        )
        with Collector(settings, session=False) as collector, linked(settings, outbox) as link:
            outbox.put([make_message(n) for n in range(20)])
            wait_for(lambda: outbox.depth == 0)
            assert link.status().protocol == "3.1.1"
            wait_for(lambda: len(collector.bodies("/event")) == 20)
            with Collector(settings, session=True) as other:
                assert other.connects, "it waits for ever for the rest of a CONNECT with properties"
        with pytest.raises(DeliveryError, match="Unsupported protocol version"):
            open_connection(settings.model_copy(update={"protocol": "5"}))


def test_the_embedded_broker_ends_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that leaves while the broker ends is no error to show an operator."""
    pytest.importorskip("amqtt")
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    for wait_s in (0.0, 0.0, 0.01, 0.02, 0.02, 0.03):
        with local_broker() as address:
            clients = [paho.Client(paho.CallbackAPIVersion.VERSION2) for _ in range(6)]
            for client in clients:
                client.connect(address.host, address.port)
                client.loop_start()
            time.sleep(wait_s)
            for client in clients[::2]:
                client.disconnect()
        for client in clients:
            client.loop_stop()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@needs_mosquitto
def test_the_demo_broker_is_mosquitto_where_there_is_one(outbox: Outbox) -> None:
    with local_broker() as address:
        assert address.program == "mosquitto"
        with linked(MqttSettings(host=address.host, port=address.port), outbox):
            outbox.put([make_message()])
            wait_for(lambda: outbox.depth == 0)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((address.host, address.port), timeout=1)


def test_a_broker_that_never_acknowledges_is_left_and_the_message_sent_again(outbox: Outbox) -> None:
    def answer(it: Publication) -> bytes | None:
        return b"" if it.topic == AVAILABILITY or server.connections > 1 else None

    with Script(answering(answer)) as server:
        settings = MqttSettings(host="127.0.0.1", port=server.port, ack_timeout_s=0.5, backoff_min_s=0.05)
        outbox.put([make_alert()])
        with linked(settings, outbox) as link:
            wait_for(lambda: outbox.depth == 0)
            assert link.status().connects >= 2


def test_a_broker_that_is_slower_than_expected_gets_the_time_that_it_takes(outbox: Outbox) -> None:
    def answer(_: Publication) -> bytes:
        time.sleep(1.0)
        return b""

    with Script(answering(answer)) as server:
        settings = MqttSettings(host="127.0.0.1", port=server.port, ack_timeout_s=0.3, backoff_min_s=0.05)
        outbox.put([make_alert()])
        with linked(settings, outbox):
            wait_for(lambda: outbox.depth == 0)


def test_patience_with_acknowledgements_begins_anew_with_one_that_comes_in_time(outbox: Outbox) -> None:
    def answer(it: Publication) -> bytes | None:
        return b"" if it.topic == AVAILABILITY and server.connections > 1 else None

    with Script(answering(answer)) as server:
        settings = MqttSettings(
            host="127.0.0.1", port=server.port, ack_timeout_s=0.3, backoff_min_s=0.5, backoff_max_s=0.5
        )
        outbox.put([make_alert()])
        with linked(settings, outbox) as link:
            wait_for(lambda: "has not acknowledged a message for 0.3 s" in str(link.status().error))


def test_a_connection_that_is_dead_is_left_after_two_keep_alives_whatever_the_patience(outbox: Outbox) -> None:
    """No answer comes, to pings neither, and no end: half-open, as behind a router that forgot it."""
    with Script(answering(lambda it: b"" if it.topic == AVAILABILITY else None)) as server:
        settings = MqttSettings(host="127.0.0.1", port=server.port, ack_timeout_s=1000.0, backoff_min_s=0.05)
        outbox.put([make_alert()])
        with linked(settings.model_copy(update={"keepalive_s": 1}), outbox):
            wait_for(lambda: server.connections >= 2)


def test_a_refused_publication_that_may_pass_later_is_kept_and_holds_up_no_other_topic(outbox: Outbox) -> None:
    quota_exceeded, accept = b"\x97", threading.Event()
    arrived: list[str] = []

    def answer(it: Publication) -> bytes:
        if it.topic.endswith("/event") and not accept.is_set():
            return quota_exceeded
        arrived.append(it.topic if it.topic.endswith("alert") else it.rest.decode("utf-8", "replace"))
        return b""

    with Script(answering(answer)) as server:
        settings = MqttSettings(host="127.0.0.1", port=server.port, backoff_min_s=0.05)
        outbox.put([make_message(n, r) for n in range(2) for r in range(3)] + [make_alert()])
        with linked(settings, outbox) as link:
            wait_for(lambda: any(topic.endswith("alert") for topic in arrived))
            wait_for(lambda: link.status().refused >= 2)
            outbox.put([make_alert(5)])
            wait_for(lambda: sum(topic.endswith("alert") for topic in arrived) == 2)
            wait_for(lambda: outbox.depth == 6)
            assert outbox.stats().set_aside == 0
            assert link.status().refused <= 4, "a refused topic is left alone for a while"
            assert "Quota exceeded" in str(link.status().error)
            accept.set()
            wait_for(lambda: outbox.depth == 0, what="sent when the hold is over")
        for n in range(2):
            mine = [text for text in arrived if f'"id":"{make_event(n).id}"' in text]
            assert [f'"revision":{r}' in text for r, text in enumerate(mine)] == [True] * 3


@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_that_the_broker_cannot_take_blocks_no_other(tmp_path: Path, outbox: Outbox, protocol: Any) -> None:
    """MQTT 5 brokers announce their limit and the message is set aside; a 3.1.1 broker just hangs up: it is found by
    sending one at a time, and waits."""
    with running(tmp_path, "max_packet_size 3000") as broker, Collector(broker.settings()) as collector:
        outbox.put([make_message(n) for n in range(5)])
        outbox.put([dataclasses.replace(make_alert(1), payload=b"{" + b"x" * 5000)])
        outbox.put([make_alert(n) for n in range(2, 5)])
        settings = broker.settings(protocol=protocol, backoff_max_s=0.05)
        with linked(settings, outbox) as link:
            wait_for(lambda: len(collector.bodies("/event")) == 5 and len(collector.bodies("/alert")) == 3)
            wait_for(lambda: outbox.depth == (0 if protocol == "5" else 1))
            assert outbox.stats().set_aside == (1 if protocol == "5" else 0)
            assert ("larger than" if protocol == "5" else "die with") in str(link.status().error)


@pytest.mark.parametrize(
    ("name", "serve", "words"),
    [
        ("http", lambda c: (c.recv(100), c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")), "MQTT|answer"),
        ("closes", lambda c: c.recv(100), "closed the connection"),
        ("silent", lambda c: time.sleep(5), "did not answer"),
        ("garbage", lambda c: (c.recv(100), c.sendall(b"\x20\x7f" + b"\xff" * 127)), "MQTT|refused|answer"),
        ("server unavailable", lambda c: (c.recv(100), c.sendall(b"\x20\x03\x00\x88\x00")), "refused the connection"),
    ],
)
def test_what_is_no_broker_is_named(name: str, serve: Any, words: str, outbox: Outbox) -> None:
    with Script(serve) as server:
        patience_s = 0.5 if name == "silent" else 60.0
        settings = MqttSettings(host="127.0.0.1", port=server.port, connect_timeout_s=patience_s, backoff_min_s=0.05)
        with pytest.raises(DeliveryError, match=words) as caught:
            open_connection(settings)
        assert caught.value.hint
        with linked(settings, outbox) as link:
            wait_for(lambda: server.connections > 2)
            assert link.alive
            assert not link.status().connected


def test_an_absent_broker_and_an_unknown_host_are_named() -> None:
    with pytest.raises(DeliveryError, match="refused the connection") as caught:
        open_connection(MqttSettings(host="127.0.0.1", port=own_port()))
    assert "running" in caught.value.hint
    with pytest.raises(DeliveryError, match=r"no address for 'broker.invalid'"):
        open_connection(MqttSettings(host="broker.invalid"))


@needs_mosquitto
def test_tls_is_verified(tmp_path: Path, outbox: Outbox) -> None:
    issuer = Authority(tmp_path)
    certificate, key = issuer.issue("broker")
    lines = (f"certfile {certificate}", f"keyfile {key}")
    with running(tmp_path, *lines) as broker:
        with pytest.raises(DeliveryError, match="not trusted"):
            open_connection(broker.settings(tls=TlsConfig()))
        with pytest.raises(DeliveryError):
            open_connection(broker.settings(connect_timeout_s=1))
        with pytest.raises(DeliveryError, match="TLS files"):
            open_connection(broker.settings(tls=TlsConfig(ca_file=tmp_path / "absent.pem")))
        settings = broker.settings(tls=TlsConfig(ca_file=issuer.ca))
        with Collector(settings) as collector, linked(settings, outbox):
            outbox.put([make_message(n) for n in range(100)])
            wait_for(lambda: len(collector.bodies("/event")) == 100)
    with running(tmp_path) as plain, pytest.raises(DeliveryError, match=r"TLS with|closed the connection"):
        open_connection(plain.settings(tls=TlsConfig()))


@needs_mosquitto
def test_a_topic_that_mqtt_forbids_does_not_end_the_link(tmp_path: Path, outbox: Outbox) -> None:
    outbox.put([Message("talus/+/x", b"{}", Priority.ALERT, key="bad"), make_alert()])
    with running(tmp_path) as broker, linked(broker.settings(), outbox) as link:
        wait_for(lambda: outbox.depth == 0)
        assert link.alive
    assert outbox.stats().set_aside == 1


def test_two_agents_with_one_client_id_are_told(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    """As recent brokers do it: a DISCONNECT with the reason "session taken over"."""

    def serve(client: socket.socket) -> None:
        read_packet(client)
        client.sendall(CONNACK_5 + b"\xe0\x09\x8e\x07\x1f\x00\x04twin")
        read_packet(client)

    with Script(serve) as server:
        with linked(MqttSettings(host="127.0.0.1", port=server.port, backoff_min_s=0.05), outbox):
            wait_for(lambda: "taken over" in caplog.text)
        assert "give each agent its own" in caplog.text


@needs_mosquitto
def test_stop_sends_what_is_left_and_says_so(tmp_path: Path, outbox: Outbox) -> None:
    with running(tmp_path) as broker:
        link = MqttSink(broker.settings(), outbox.cursor("mqtt"), STATION)
        link.start()
        wait_for(lambda: link.status().connected)
        outbox.put([make_message(n) for n in range(200)])
        assert link.stop(10.0) is True
        assert outbox.depth == 0
        assert not link.alive
    absent = MqttSink(broker.settings(backoff_max_s=60), outbox.cursor("mqtt"), STATION)
    outbox.put([make_message()])
    absent.start()
    wait_for(lambda: absent.status().error)
    started = time.monotonic()
    assert absent.stop(100.0) is False
    assert time.monotonic() - started < 30, "it does not sit out the back-off"


@needs_mosquitto
def test_a_broker_with_a_receive_maximum_of_one(tmp_path: Path, outbox: Outbox) -> None:
    with running(tmp_path, "max_inflight_messages 1") as broker, Collector(broker.settings()) as collector:
        with linked(broker.settings(), outbox):
            outbox.put([make_message(n) for n in range(60)])
            wait_for(lambda: len(collector.bodies("/event")) == 60)
        assert outbox.depth == 0
        outbox.put([make_alert()])
        link = MqttSink(broker.settings(), outbox.cursor("mqtt"), STATION)
        for n in range(20):
            link.publish_retained(Message(f"homeassistant/{n}", b"{}", Priority.OTHER, retain=True))
        with Collector(broker.settings(), "#", session=False) as all_of_it:
            link.start()
            wait_for(lambda: len(all_of_it.received) >= 22)
            link.stop(2.0)
        assert make_alert().topic in [message.topic for message in all_of_it.received[:4]], "before the values"


@needs_mosquitto
def test_a_disk_that_fails_leaves_the_link_up_and_the_message_is_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The outbox's file is closed under the link, as good as a disk that is gone."""
    caplog.set_level(logging.WARNING)
    box = Outbox(tmp_path / "o.db")
    with running(tmp_path) as broker:
        link = MqttSink(broker.settings(), box.cursor("mqtt"), STATION)
        link.start()
        wait_for(lambda: link.status().connected)
        box.put([make_message(1)])
        wait_for(lambda: box.depth == 0)
        box.close()
        with pytest.raises(DeliveryError):
            box.put([make_message(2)])
        state = Message("talus/v1/XX/ABC/health", b"{}", Priority.OTHER, retain=True)
        before = link.status().acknowledged
        link.publish_retained(state)
        wait_for(lambda: link.status().acknowledged > before, what="health still goes out")
        assert link.alive
        assert link.status().connected
        link.stop(1.0)


@needs_mosquitto
def test_retained_values_that_somebody_clears_or_overwrites_are_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The will of an old connection that comes late over a bridge said ``offline`` of a living station for weeks."""
    monkeypatch.setattr("agent.deliver.mqtt.REFRESH_S", 0.0)
    state = Message("talus/v1/XX/ABC/state", b'{"state":1}', Priority.OTHER, retain=True)
    health = dataclasses.replace(state, topic="talus/v1/XX/ABC/health")
    box = Outbox(tmp_path / "o.db")
    with running(tmp_path) as broker, Collector(broker.settings()) as seen, linked(broker.settings(), box) as link:
        link.publish_retained(state)
        wait_for(lambda: seen.payloads("/availability") and seen.payloads("/state"))
        stranger = open_connection(broker.settings(), "stranger")
        for topic, payload in ((state.topic, b""), ("talus/v1/XX/ABC/availability", b"offline")):
            token = stranger.publish(topic, payload, retain=True)
            wait_for(lambda token=token: token in [ack.token for ack in stranger.pump(0.05)])
        stranger.close()
        wait_for(lambda: seen.payloads("/availability")[-1] == b"offline" and seen.payloads("/state")[-1] == b"")
        link.publish_retained(health)
        wait_for(
            lambda: (seen.payloads("/availability")[-1], seen.payloads("/state")[-1]) == (b"online", state.payload)
        )


@needs_mosquitto
def test_alert_expiry_and_content_type_travel_with_mqtt_5(tmp_path: Path) -> None:
    """Read off the wire by a scripted server: properties 0x02 (expiry), 0x03 (content type), 0x01 (UTF-8)."""
    seen: list[bytes] = []

    def answer(it: Publication) -> bytes:
        if it.topic.endswith("alert"):
            seen.append(bytes([it.kind]) + it.rest)
        return b""

    box = Outbox(tmp_path / "o.db")
    with Script(answering(answer)) as server, linked(MqttSettings(host="127.0.0.1", port=server.port), box):
        box.put([make_alert()])
        wait_for(lambda: seen)
    box.close()
    assert seen[0][0] & 0x0F == 0x02, "QoS 1, neither retained nor a duplicate"
    head = seen[0][1 : 1 + seen[0][1] + 1]
    assert b"\x02" + (86_400).to_bytes(4, "big") in head
    assert b"\x03\x00\x10application/json" in head
    assert b"\x01\x01" in head


@needs_mosquitto
def test_a_refused_subscription_is_an_error(tmp_path: Path) -> None:
    with Script(answering(lambda _: b"")) as server, pytest.raises(DeliveryError, match="refused the subscription"):
        open_connection(
            MqttSettings(host="127.0.0.1", port=server.port),
            subscription=Subscription(["talus/#"], lambda message: True),
        )


def test_addresses() -> None:
    settings = MqttSettings.from_url("mqtts://slope:s%40fe@broker.example/site/a")
    assert (settings.host, settings.port, settings.username) == ("broker.example", 8883, "slope")
    assert (settings.password, settings.prefix, settings.tls) == ("s@fe", "site/a", TlsConfig())
    assert "s@fe" not in repr(settings)
    assert MqttSettings.from_url("localhost").address == "localhost:1883"
    assert MqttSettings.from_url("localhost:1884").port == 1884
    assert MqttSettings.from_url("mqtt://localhost/site?protocol=3.1.1").protocol == "3.1.1"
    for bad in (
        "mqtt://x?protocol=4",
        "mqtt://x?qos=2",
        "http://x",
        "mqtt://",
        "mqtt://host:99999",
        "mqtt://host:abc",
        "",
    ):
        with pytest.raises(ConfigError):
            MqttSettings.from_url(bad)
