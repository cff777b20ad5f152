"""The example files for Mosquitto, each run by a real one: access lists, TLS, certificates of stations, the bridge."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_support import talus
from broker_support import STATION, Collector, Mosquitto, make_alert, make_message, needs_mosquitto, own_port, wait_for
from certificates_support import Authority

from agent.config.broker import MqttSettings, TlsConfig
from agent.deliver.connection import Connection, Subscription
from agent.deliver.mqtt import MqttSink
from agent.deliver.outbox import Outbox
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError

EXAMPLES = Path(__file__).parents[1] / "configs" / "mosquitto"
PASSWORDS = {"station-abc": "one", "control-room": "two", "operator": "three"}

pytestmark = needs_mosquitto


class Example(Mosquitto):
    """A broker with one of the example files, or with several, paths and ports replaced."""

    def __init__(self, folder: Path, names: str, port: int, replaced: dict[str, str]) -> None:
        super().__init__(folder, port=port)
        state = folder / f"state-{names}"
        state.mkdir()
        text = "\n".join((EXAMPLES / name).read_text("utf-8") for name in names.split())
        for old, new in {"/etc/mosquitto/talus": str(folder), "/var/lib/mosquitto": str(state), **replaced}.items():
            assert old in text, f"{old} is not in {names}"
            text = text.replace(old, new)
        self._config.write_text(f"{text}\nuser root\n")


@contextlib.contextmanager
def centre(folder: Path) -> Iterator[tuple[Example, dict[str, int]]]:
    """The broker of broker.conf, with certificates, passwords and the access list."""
    issuer = Authority(folder)
    issuer.issue("broker")
    for user, stem in (("station-abc", "station"), ("region-north", "region")):
        for file in issuer.issue(user):
            file.rename(folder / f"{stem}{file.suffix}")
    passwords = folder / "passwords"
    for number, (user, word) in enumerate(PASSWORDS.items()):
        options = ["-c"] if number == 0 else []
        subprocess.run(["mosquitto_passwd", *options, "-b", passwords, user, word], check=True)
    (folder / "acl").write_text((EXAMPLES / "acl").read_text("utf-8"))
    (folder / "acl").chmod(0o600)
    ports = {"8883": own_port(), "8884": own_port()}
    broker = Example(folder, "broker.conf", ports["8883"], {name: str(port) for name, port in ports.items()})
    try:
        broker.start()
        yield broker, ports
    finally:
        broker.stop()


def settings(folder: Path, port: int, **changes: Any) -> MqttSettings:
    tls = changes.pop("tls", TlsConfig(ca_file=folder / "ca.pem"))
    return MqttSettings(host="127.0.0.1", port=port, tls=tls, backoff_min_s=0.05, backoff_max_s=0.3, **changes)


def control_room(folder: Path, port: int) -> Collector:
    return Collector(settings(folder, port, username="control-room", password=PASSWORDS["control-room"]))


def sends(link_settings: MqttSettings, box: Outbox, collector: Collector) -> None:
    """An alert and an event go out as this user and reach the control room."""
    link = MqttSink(link_settings, box.cursor("mqtt"), STATION)
    link.start()
    try:
        box.put([make_message(1), make_alert(1)])
        wait_for(lambda: collector.bodies("/alert") and collector.bodies("/event"))
        wait_for(lambda: box.depth == 0)
    finally:
        link.stop(2.0)


def test_a_station_with_a_password_over_tls(tmp_path: Path) -> None:
    with centre(tmp_path) as (_, ports), control_room(tmp_path, ports["8883"]) as collector:
        user = {"username": "station-abc", "password": PASSWORDS["station-abc"]}
        sends(settings(tmp_path, ports["8883"], **user), Outbox(tmp_path / "o.db"), collector)
        with pytest.raises(DeliveryError, match="Not authorized"):
            Connection.open(settings(tmp_path, ports["8883"]), "nobody", Waker())
        with pytest.raises(DeliveryError):
            Connection.open(settings(tmp_path, ports["8883"], tls=None, connect_timeout_s=1), "plain", Waker())


def test_a_station_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    """Its common name is its user; without a certificate nobody gets in."""
    with centre(tmp_path) as (_, ports), control_room(tmp_path, ports["8883"]) as collector:
        own = TlsConfig(
            ca_file=tmp_path / "ca.pem", cert_file=tmp_path / "station.pem", key_file=tmp_path / "station.key"
        )
        sends(settings(tmp_path, ports["8884"], tls=own), Outbox(tmp_path / "o.db"), collector)
        with pytest.raises(DeliveryError):
            Connection.open(settings(tmp_path, ports["8884"], connect_timeout_s=2), "nobody", Waker())


def test_an_operator_s_commands_trust_the_authority_that_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALUS_MQTT_PASSWORD", PASSWORDS["operator"])
    with centre(tmp_path) as (_, ports):
        where = ("--broker", f"mqtts://operator@127.0.0.1:{ports['8883']}")
        for command in (("config", "show", "--station", "XX.ABC"), ("model", "show", "--station", "XX.ABC")):
            status, _, err = talus(*command, *where)
            assert (status, "is not trusted" in err) == (1, True), err
            status, _, err = talus(*command, *where, "--ca", tmp_path / "ca.pem")
            assert (status, "report from XX.ABC yet" in err) == (1, True), err
        status, _, err = talus("watch", *where, "--ca", tmp_path / "ca.pem", "--timeout", "0.1")
        assert status == 0, err


@pytest.mark.parametrize(
    ("user", "name", "allowed"),
    [
        ("station-abc", "XX/ABC/alert", True),
        ("station-abc", "XX/OTHER/alert", False),
        ("control-room", "XX/ABC/config/set", False),
        ("operator", "XX/ABC/config/set", True),
        ("operator", "XX/ABC/alert", False),
    ],
)
def test_the_access_list_lets_each_write_its_own(tmp_path: Path, user: str, name: str, allowed: bool) -> None:
    with centre(tmp_path) as (_, ports):
        who = settings(tmp_path, ports["8883"], username=user, password=PASSWORDS[user])
        connection = Connection.open(who, "writer", Waker())
        token = connection.publish(f"talus/v1/{name}", b"{}")
        acks = []
        while not acks:
            acks = connection.pump(1.0)
        assert (acks[0].token, acks[0].code < 0x80) == (token, allowed)
        connection.close()


def test_a_control_room_that_is_away_gets_what_came_although_the_broker_was_killed(tmp_path: Path) -> None:
    """Its session, and what waits in it, are on the broker's disk at once; so is what came after the restart."""
    user = {"username": "station-abc", "password": PASSWORDS["station-abc"]}
    with centre(tmp_path) as (broker, ports):
        box = Outbox(tmp_path / "o.db")
        room = settings(tmp_path, ports["8883"], username="control-room", password=PASSWORDS["control-room"])
        heard: list[bytes] = []
        subscription = Subscription(["talus/#"], lambda message: heard.append(message.payload) is None, 3600)
        Connection.open(room, "room", Waker(), subscription=subscription).close()
        link = MqttSink(settings(tmp_path, ports["8883"], **user), box.cursor("mqtt"), STATION)
        link.start()
        for number in (1, 2):
            box.put([make_alert(number)])
            wait_for(lambda: link.status().connected and box.depth == 0)
            broker.kill()
            wait_for(lambda: not link.status().connected)
            broker.start()
        wait_for(lambda: link.status().connected and box.depth == 0)
        connection = Connection.open(room, "room", Waker(), subscription=subscription)
        wanted = {make_alert(number).key for number in (1, 2)}
        wait_for(lambda: not connection.pump(0.1) and all(any(k.encode() in h for h in heard) for k in wanted))
        connection.close()
        link.stop(2.0)


def orders(folder: Path, port: int, at_station: MqttSettings) -> None:
    """What an operator publishes at the centre comes to the station's own broker, every kind of it."""
    names = {f"talus/v1/XX/ABC/{name}" for name in ("config/set", "model/set", "model/chunk", "command")}
    heard: set[str] = set()
    subscription = Subscription(tuple(names), lambda message: heard.add(message.topic) or True)
    listening = Connection.open(at_station, "agent", Waker(), subscription=subscription)
    who = settings(folder, port, username="operator", password=PASSWORDS["operator"])
    sending = Connection.open(who, "desk", Waker())
    for name in names:
        sending.publish(name, b"{}")
    wait_for(lambda: not sending.pump(0.05) and not listening.pump(0.05) and heard == names)
    listening.close()
    sending.close()


def test_the_bridge_brings_what_was_sent_while_the_centre_was_away(tmp_path: Path) -> None:
    with centre(tmp_path) as (broker, ports), control_room(tmp_path, ports["8883"]) as collector:
        local = own_port()
        own = Example(
            tmp_path,
            "bridge.conf",
            local,
            {"listener 1883": f"listener {local}", "broker.example.org:8884": f"127.0.0.1:{ports['8884']}"},
        )
        try:
            own.start()
            link_settings = own.settings()
            box = Outbox(tmp_path / "o.db")
            sends(link_settings, box, collector)
            broker.stop()
            link = MqttSink(link_settings, box.cursor("mqtt"), STATION)
            link.start()
            box.put([make_alert(2), make_alert(3)])
            wait_for(lambda: box.depth == 0, what="the station's own broker takes them")
            link.stop(2.0)
            own.kill()
            own.start()
            broker.start()
            wait_for(lambda: len({body["id"] for body in collector.bodies("/alert")}) == 3)
            orders(tmp_path, ports["8883"], link_settings)
        finally:
            own.stop()


def test_a_region_keeps_for_the_centre_what_came_while_it_was_away_in_order(tmp_path: Path) -> None:
    """Protects a country's desk: a line between region and centre that is cut costs nothing but time."""
    with centre(tmp_path) as (broker, ports), control_room(tmp_path, ports["8883"]) as collector:
        own = {name: str(own_port()) for name in ("8883", "8884")}
        upstream = f"127.0.0.1:{ports['8884']}"
        names = {"listener 8883": f"listener {own['8883']}", "listener 8884": f"listener {own['8884']}"}
        region = Example(
            tmp_path, "broker.conf region.conf", int(own["8883"]), {"broker.example.org:8884": upstream, **names}
        )
        at_region = settings(tmp_path, int(own["8883"]), username="station-abc", password=PASSWORDS["station-abc"])
        try:
            region.start()
            station = Connection.open(at_region, "station", Waker())

            def publish(numbers: range) -> None:
                wanted = {station.publish("talus/v1/XX/ABC/event", b"%d" % number) for number in numbers}
                wanted.add(station.publish("talus/v1/XX/ABC/health", b"%d" % numbers[-1], retain=True))

                def acknowledged() -> bool:
                    wanted.difference_update(ack.token for ack in station.pump(0.1))
                    return not wanted

                wait_for(acknowledged)

            publish(range(10))
            wait_for(lambda: len(collector.payloads("/event")) >= 10)
            broker.stop()
            publish(range(10, 150))
            broker.start()
            publish(range(150, 160))
            wait_for(lambda: b"159" in collector.payloads("/event"))
            first = list(dict.fromkeys(collector.payloads("/event")))
            assert [int(payload) for payload in first] == list(range(160))
            wait_for(lambda: collector.payloads("/health")[-1:] == [b"159"])
            station.close()
            orders(tmp_path, ports["8883"], at_region)
        finally:
            region.stop()
