"""Remote configuration of a whole station: real process, real broker, real kill -9."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_support import Agent, running_agent, write_config
from broker_support import Collector, Mosquitto, needs_mosquitto, running, wait_for
from control_support import control, envelope, key
from script_support import CONNACK_5, Script, read_packet

from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection, Subscription
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from agent.service.service import LARGEST_PACKET
from desk.push.signing import SigningKey

SET = "talus/v1/XX/SLP/config/set"
FAST = "{kind: simulator, speed: 20}"
OVERSIZED = (64 * 1024 + 1, LARGEST_PACKET - 1000, LARGEST_PACKET + 1000, 5_000_000)
"""Bytes."""


@pytest.fixture
def signing(tmp_path: Path) -> SigningKey:
    return key(tmp_path)


def publish(settings: MqttSettings, payload: bytes, topic: str = SET, *, retain: bool = True) -> None:
    with contextlib.closing(Waker()) as waker:
        connection = Connection.open(settings, "operator", waker)
        token = connection.publish(topic, payload, retain=retain)
        while not any(ack.token == token for ack in connection.pump(1.0)):
            pass
        connection.close()


def reports(collector: Collector) -> list[dict[str, Any]]:
    return collector.bodies("/config/reported")


def has(collector: Collector, result: str, revision: int | None = None, kind: str | None = None) -> bool:
    """Whether a report tells of such an outcome."""
    return any(
        line["result"] == result and line["revision"] == revision and line["kind"] == kind
        for body in reports(collector)[-1:]
        for line in body["history"] + body["refused"]
    )


@contextlib.contextmanager
def site(tmp_path: Path, signing: SigningKey, **limits: float) -> Iterator[tuple[Mosquitto, Collector, Agent, Path]]:
    """A simulated station at twenty times real time that trusts the key."""
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:
        section = control(signing, **{"probation_s": 4.0, **limits})
        config = write_config(tmp_path, "", broker.port, source=FAST, control=section)
        with running_agent("run", "--config", config) as agent:
            wait_for(lambda: reports(collector), what="the first report")
            yield broker, collector, agent, config
            assert agent.process.poll() is None, agent.log
            assert "Traceback" not in agent.log, agent.log


@needs_mosquitto
def test_a_signed_change_rules_on_trial_and_is_kept(tmp_path: Path, signing: SigningKey) -> None:
    with site(tmp_path, signing) as (broker, collector, _, _):
        assert (reports(collector)[-1]["status"], reports(collector)[-1]["revision"]) == ("file", None)
        before = collector.bodies("/state")[-1]["config_sha256"]
        publish(broker.settings(), envelope(signing, 7, {"trigger": {"on": 5.0}, "reporting": {"alert_expiry_s": 99}}))
        wait_for(lambda: has(collector, "trial", 7))
        wait_for(lambda: has(collector, "kept", 7))
        wait_for(lambda: collector.bodies("/state")[-1]["config_revision"] == 7)
        assert collector.bodies("/state")[-1]["config_sha256"] != before
        assert reports(collector)[-1]["status"] == "kept"


@needs_mosquitto
def test_kill_9_in_the_probation_is_a_roll_back_at_the_next_start(tmp_path: Path, signing: SigningKey) -> None:
    with site(tmp_path, signing, probation_s=600) as (broker, collector, agent, config):
        publish(broker.settings(), envelope(signing, 3, {"trigger": {"on": 6.0}}))
        wait_for(lambda: has(collector, "trial", 3))
        agent.signal(signal.SIGKILL)
        agent.end()
        with running_agent("run", "--config", config) as second:
            wait_for(lambda: has(collector, "rolled_back", 3, "restart"))
            assert reports(collector)[-1]["status"] == "file"
            # The retained order comes again with the connection, and is not obeyed a second time.
            publish(broker.settings(), envelope(signing, 2, {}))
            wait_for(lambda: has(collector, "refused", 2, "old_revision"))
            assert [line["result"] for line in reports(collector)[-1]["history"]] == ["trial", "rolled_back"]
            agent.process, agent.said = second.process, second.said
            yielded = second.process.poll()
        assert yielded is None
        agent.process.poll = lambda: None  # type: ignore[method-assign]


@needs_mosquitto
def test_oversized_messages_and_a_storm_of_rubbish_hold_up_no_order(tmp_path: Path, signing: SigningKey) -> None:
    """What is no genuine order is refused and reported; each kind of fault has its test at the gate."""
    with site(tmp_path, signing, probation_s=600) as (broker, collector, agent, _):
        publish(broker.settings(), envelope(signing, 5, {"trigger": {"on": 6.0}}))
        wait_for(lambda: has(collector, "trial", 5))
        publish(broker.settings(), envelope(signing, 6, {}).replace(b'"body":"ey', b'"body":"eY'))
        wait_for(lambda: has(collector, "refused", None, "signature"))
        for payload in (b"[" * 60_000, *(b"x" * size for size in OVERSIZED)):
            publish(broker.settings(), payload)
        for number in range(300):
            publish(broker.settings(), b"%d" % number, retain=False)
        publish(broker.settings(), envelope(signing, 9, {"trigger": {"on": 7.0}}))
        wait_for(lambda: has(collector, "trial", 9))
        assert [line["revision"] for line in reports(collector)[-1]["history"]] == [5, 5, 9]
        assert agent.log.count("a remote change is refused") < 20


@needs_mosquitto
def test_the_station_listens_again_after_the_broker_was_away(tmp_path: Path, signing: SigningKey) -> None:
    with site(tmp_path, signing, probation_s=600) as (broker, collector, _, _):
        broker.stop()
        broker.start()
        wait_for(lambda: collector.connects > 1)
        publish(broker.settings(), envelope(signing, 1, {"trigger": {"on": 6.0}}))
        wait_for(lambda: has(collector, "trial", 1))


@needs_mosquitto
def test_a_giant_in_the_place_of_an_order_does_not_keep_events_from_going_out(
    tmp_path: Path, signing: SigningKey
) -> None:
    """MQTT 3.1.1 knows no limit that a client could name: the station hangs up once, and then does not listen."""
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:
        publish(broker.settings(), b"x" * 3_000_000)
        mqtt = f"{{host: 127.0.0.1, port: {broker.port}, protocol: 3.1.1}}"
        config = write_config(tmp_path, "", source=FAST, control=control(signing), mqtt=mqtt)
        with running_agent("run", "--config", config) as agent:
            wait_for(lambda: len(collector.bodies("/health")) >= 3)
            assert collector.payloads("/availability")[-1] == b"online"
            assert agent.log.count("at most") == 1
            assert agent.log.count("connected to") <= 2


@needs_mosquitto
def test_a_state_folder_that_cannot_hold_orders_is_told_and_the_slope_is_watched(
    tmp_path: Path, signing: SigningKey
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "control").write_text("a file where a folder should be")
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:
        config = write_config(tmp_path, "", broker.port, source=FAST, control=control(signing))
        with running_agent("run", "--config", config):
            wait_for(lambda: collector.bodies("/health"))
            wait_for(lambda: any(reason["code"] == "control" for reason in collector.bodies("/health")[-1]["reasons"]))


@needs_mosquitto
def test_a_broker_that_forbids_the_subscription_gets_events_all_the_same(tmp_path: Path, signing: SigningKey) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite talus/v1/XX/SLP/config/reported\ntopic readwrite talus/v1/XX/SLP/state\n")
    acl.chmod(0o600)
    with running(tmp_path, f"acl_file {acl}") as broker, Collector(broker.settings(), "talus/v1/XX/SLP/#") as collector:
        config = write_config(tmp_path, "", broker.port, source=FAST, control=control(signing))
        with running_agent("run", "--config", config):
            wait_for(lambda: collector.bodies("/state"))


@needs_mosquitto
def test_sighup_reads_the_tunables_anew_and_a_faulty_file_changes_nothing(tmp_path: Path) -> None:
    """Whatever is wrong with the file: the settings stay, and the station says why it is degraded until it is good."""

    def reasons() -> list[str]:
        return [r["text"] for r in collector.bodies("/health")[-1]["reasons"] if r["code"] == "config_file"]

    with running(tmp_path) as broker, Collector(broker.settings()) as collector:
        config = write_config(tmp_path, "", broker.port, source=FAST)
        with running_agent("run", "--config", config) as agent:
            wait_for(lambda: collector.bodies("/state") and collector.bodies("/health"))
            first = collector.bodies("/state")[-1]["config_sha256"]
            good = config.read_text()
            for bad in (".Inf", "-5"):
                config.write_text(good.replace("health_interval_s: 5", f"health_interval_s: {bad}"))
                agent.signal(signal.SIGHUP)
                wait_for(lambda bad=bad: any(f"given: {bad}" in text for text in reasons()))
            assert collector.bodies("/health")[-1]["status"] == "degraded"
            config.write_text(
                good.replace("health_interval_s: 5}", "health_interval_s: 5}, trigger: {low_hz: 55, high_hz: 60}")
            )
            agent.signal(signal.SIGHUP)
            wait_for(
                lambda: any("too few for the trigger" in text for text in reasons()),
                what="a band that these data do not have",
            )
            assert collector.bodies("/state")[-1]["config_sha256"] == first
            config.write_text(good.replace("health_interval_s: 5}", "health_interval_s: 6}, trigger: {on: 7.0}"))
            agent.signal(signal.SIGHUP)
            wait_for(lambda: collector.bodies("/state")[-1]["config_sha256"] != first)
            config.write_text(good)
            agent.signal(signal.SIGHUP)
            wait_for(lambda: collector.bodies("/state")[-1]["config_sha256"] == first)
            wait_for(lambda: not reasons())
            config.write_text(good.replace(f"port: {broker.port}", "port: 1"))
            agent.signal(signal.SIGHUP)
            wait_for(lambda: reasons() == ["changed in the file and not in use before a restart: mqtt"])
            config.write_text(good)
            agent.signal(signal.SIGHUP)
            wait_for(lambda: not reasons())


def hostile(packet: bytes) -> Any:
    """A broker that lets everyone in and then sends what nobody asked for."""

    def serve(client: socket.socket) -> None:
        read_packet(client)
        client.sendall(CONNACK_5)
        client.sendall(packet)
        while read_packet(client):
            pass

    return serve


def publication(qos: int, payload: bytes, packet_id: int = 1) -> bytes:
    topic = SET.encode()
    body = len(topic).to_bytes(2, "big") + topic + packet_id.to_bytes(2, "big") + b"\x00" + payload
    length, head = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        head += bytes([digit | (0x80 if length else 0)])
        if not length:
            return bytes([0x30 | qos << 1]) + head + body


@pytest.mark.parametrize(
    ("packet", "queued", "words"),
    [
        (publication(1, b"x" * 200_000), 10_000, "at most"),
        (b"\x32\xff\xff\xff\x7f", 10_000, "at most"),
        (publication(2, b"x"), 10_000, "not asked for"),
        (publication(1, b"x") * 100, 0, "does not read"),
    ],
    ids=["too large", "claims 256 MB", "QoS 2", "reads no acknowledgement"],
)
def test_a_hostile_broker_is_hung_up_on_before_it_fills_the_memory(
    packet: bytes, queued: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.deliver.connection.MAX_UNSENT", queued)
    subscription = Subscription((SET,), lambda _: True, required=False, largest=LARGEST_PACKET)
    with Script(hostile(packet)) as server, contextlib.closing(Waker()) as waker:
        settings = MqttSettings(host="127.0.0.1", port=server.port)
        with pytest.raises(DeliveryError, match=words):  # while it connects, or soon afterwards
            connection = Connection.open(settings, "station", waker, subscription=subscription)
            try:
                while True:
                    connection.pump(1.0)
            finally:
                connection.abandon()
