"""``talus model`` and ``talus ask`` as an operator types them, against a station and a broker that are real."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_support import running_agent, talus, write_config
from broker_support import Collector, Mosquitto, needs_mosquitto, running, wait_for
from control_support import key
from inference_support import small_bundle
from obspy import read

from agent.config.file import load
from agent.deliver.connection import Connection, Received
from agent.deliver.sockets import Waker
from agent.remote.gate import MAX_CORRELATION, Store, Stored
from agent.remote.model_order import CHUNK_BYTES
from agent.remote.slots import DEATHS, ModelSlots
from agent.service.remote_orders import RemoteOrders
from agent.types import StationId
from desk.push.models import command, offer, wrap
from desk.push.signing import SigningKey

pytestmark = needs_mosquitto
STATION = StationId("XX", "SLP", "", "")
CALM = "{kind: simulator, speed: 1}"
LIVELY = "{kind: simulator, speed: 20, seed: 5, rates: {slopequakes_per_hour: 120, rockfalls_per_hour: 60}}"


class Place:
    """A broker, a station's file, and an operator's key."""

    def __init__(self, folder: Path, broker: Mosquitto, *, source: str = LIVELY, **control: object) -> None:
        self.folder, self.broker = folder, broker
        self.key = folder / "key.pem"
        section = {
            "keys": [{"name": "ops", "public": key(folder).trusted("own").public}],
            "probation_s": 3600,
            "models": {"shadow_windows": 3, "agreement_share": 0.0},
            **control,
        }
        bundle = small_bundle(folder)
        self.config = write_config(
            folder,
            "",
            broker.port,
            source=source,
            control=json.dumps(section),
            classifier=f"{{bundle: {bundle}, backends: [onnxruntime]}}",
        )
        self.where = ("--broker", f"mqtt://127.0.0.1:{broker.port}", "--station", "XX.SLP")
        self.signed = (*self.where, "--key", self.key)

    def ask(self, *words: object) -> tuple[int, str, str]:
        return talus("ask", *words, *self.signed)

    def newer(self, version: str = "2.0.0") -> Path:
        (self.folder / version).mkdir()
        return small_bundle(self.folder / version, version=version)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running(tmp_path) as made:
        yield made


def children_of(pid: int) -> list[int]:
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for line in found for child in line]


def publish(
    broker: Mosquitto,
    payload: bytes,
    correlation: bytes | None = None,
    *,
    topic: str = "talus/v1/XX/SLP/command",
    retain: bool = False,
) -> None:
    """Give the broker a command, or something else, as anyone may who can reach it."""
    with contextlib.closing(Waker()) as waker:
        connection = Connection.open(broker.settings(), f"anyone-{secrets.token_hex(4)}", waker)
        token = connection.publish(topic, payload, retain=retain, correlation=correlation)
        wait_for(lambda: any(ack.token == token for ack in connection.pump(0.1)))
        connection.close()


def test_a_remote_model_serves_through_restarts_and_can_be_taken_back(tmp_path: Path, broker: Mosquitto) -> None:
    place = Place(tmp_path, broker, probation_s=1)
    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        status, out, err = talus("model", "push", place.newer(), *place.signed, "--follow", "--wait", 100)
        assert status == 0, (out, err)
        steps = [re.sub(r",.*|;.*", "", line.split(": ")[2]) for line in out.splitlines()]
        assert list(dict.fromkeys(steps)) == ["fetching", "trying", "shadow", "probation", "kept"]
        assert out.splitlines()[-1].endswith("small 2.0.0 serves")
    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("watches XX.SLP with small 2.0.0")
        agent.wait_for("connected to")
        status, out, err = talus("model", "rollback", *place.signed)
        assert status == 0, err
        assert re.fullmatch(r"XX\.SLP: small .*: rolled back \(ordered\); small 1\.2\.3 serves\n", out), (
            "what serves now"
        )
        assert talus("model", "show", *place.where)[1].endswith("small 1.2.3 serves\n")
        for action, words in (("promote", "no model is in the shadow"), ("rollback", "there is none before it")):
            status, out, err = talus("model", action, *place.signed)
            assert (status, out) == (1, ""), "nothing was done"
            assert re.search(f"refused: .*{words}", err)
    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("watches XX.SLP with small 1.2.3")


def test_a_stop_in_the_trial_of_a_model_says_nothing_against_it(tmp_path: Path, broker: Mosquitto) -> None:
    """As Ctrl-C does, to the agent and to all that belongs to it."""
    place = Place(tmp_path, broker)
    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        pushed = threading.Thread(
            target=talus, args=("model", "push", place.newer(), *place.signed, "--wait", "20"), daemon=True
        )
        pushed.start()
        agent.wait_for("small 2.0.0: trying")
        wait_for(lambda: children_of(agent.process.pid))
        for pid in (*children_of(agent.process.pid), agent.process.pid):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(pid) == os.getpgid(0):
                    os.kill(pid, signal.SIGINT)
        assert agent.process.wait(60) == 0
    chosen = ModelSlots(tmp_path / "state" / "models").chosen
    assert chosen.order is not None and chosen.order.title == "small 2.0.0" and chosen.begun == 0
    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("small 2.0.0: shadow")


def test_a_kept_model_that_ends_the_agent_again_and_again_is_taken_back(tmp_path: Path, broker: Mosquitto) -> None:
    place = Place(tmp_path, broker, probation_s=1)

    def start(model: str, how: signal.Signals) -> None:
        with running_agent("run", "--config", place.config) as agent:
            agent.wait_for(f"watches XX.SLP with {model}")
            agent.signal(how)
            agent.end()

    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        status, _, err = talus("model", "push", place.newer(), *place.signed, "--follow", "--wait", "100")
        assert status == 0, err
    for _ in range(DEATHS - 1):
        start("small 2.0.0", signal.SIGKILL)
    start("small 2.0.0", signal.SIGTERM)
    start("small 2.0.0", signal.SIGKILL)
    with Collector(broker.settings()) as heard, running_agent("run", "--config", place.config) as agent:
        agent.wait_for("watches XX.SLP with small 1.2.3")
        words = f"the agent died {DEATHS} times within a day"
        wait_for(lambda: [body for body in heard.bodies("/state") if words in (body["backend_reason"] or "")])
        wait_for(lambda: words in talus("model", "show", *place.where)[1])
    start("small 1.2.3", signal.SIGTERM)


def test_a_kill_between_an_order_heard_and_an_order_begun_loses_no_order(tmp_path: Path, broker: Mosquitto) -> None:
    """What lies on the disk between the two writes is made here by hand; the moment itself lasts a millisecond."""
    place = Place(tmp_path, broker, source=CALM)
    offered = offer(place.newer(), key(tmp_path), STATION, promote="auto", url=None, valid_days=1)
    heard = hashlib.sha256(offered.payload).hexdigest()
    Store(tmp_path / "state" / "control", "model").write(Stored(highest=offered.revision, newest=heard))
    with contextlib.closing(Waker()) as waker:
        connection = Connection.open(broker.settings(), "anyone", waker)
        token = connection.publish("talus/v1/XX/SLP/model/set", offered.payload, retain=True)
        wait_for(lambda: any(ack.token == token for ack in connection.pump(0.1)))
        connection.close()
    with running_agent("run", "--config", place.config) as agent:
        wait_for(lambda: ModelSlots(tmp_path / "state" / "models").chosen.order)
        agent.signal(signal.SIGTERM)
        agent.end()
    stored = Store(tmp_path / "state" / "control", "model").stored
    assert (stored.highest, stored.newest) == (offered.revision, heard), "and no replay is let in by it"


def test_the_record_of_an_event_can_be_had_and_is_what_its_hash_says(tmp_path: Path, broker: Mosquitto) -> None:
    place = Place(tmp_path, broker)
    with Collector(broker.settings()) as heard, running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")

        def ended() -> list[dict[str, object]]:
            return [body for body in heard.bodies("/event") if body["phase"] == "end" and body["evidence"]]

        wait_for(ended)
        event = ended()[0]
        out = tmp_path / "event.mseed"
        status, _, err = place.ask("evidence", event["id"], "--out", out)
        assert status == 0, err
        (trace, *_) = read(str(out))
        assert (trace.stats.network, trace.stats.station) == ("XX", "SLP")
        assert out.stat().st_size == event["evidence"]["bytes"]  # type: ignore[index]
        status, _, err = place.ask("evidence", "XX.SLP-19990101T000000.000Z", "--out", tmp_path / "none")
        assert (status, "no record of that event" in err) == (1, True)
        assert not (tmp_path / "none").exists()


def test_a_test_alarm_goes_all_the_way_and_is_marked(tmp_path: Path, broker: Mosquitto) -> None:
    place = Place(tmp_path, broker, source=CALM)
    with Collector(broker.settings()) as heard, running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        status, out, err = place.ask("test-alarm")
        assert status == 0, err
        name = out.split("alert ")[1].strip()
        wait_for(lambda: [body for body in heard.bodies("/alert") if body["id"] == name])
        (alarm,) = [body for body in heard.bodies("/alert") if body["id"] == name]
        assert alarm["exercise"] is True and "ordered by ops" in alarm["reason"]
        status, out, err = place.ask("self-test")
        assert status == 0, err
        assert "model small 1.2.3" in out


def test_a_command_taken_out_of_the_file_is_obeyed_no_more_after_a_reload(tmp_path: Path, broker: Mosquitto) -> None:
    place = Place(tmp_path, broker, source=CALM)
    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        assert place.ask("test-alarm")[0] == 0
        text = place.config.read_text()
        place.config.write_text(text.replace('"probation_s": 3600', '"probation_s": 3600, "commands": ["self_test"]'))
        agent.signal(signal.SIGHUP)
        agent.wait_for("was read anew")
        status, _, err = place.ask("test-alarm")
        assert status == 1 and "test_alarm is not in control.commands" in err
        assert place.ask("self-test")[0] == 0


def test_an_answer_gives_back_the_correlation_data_of_its_request(tmp_path: Path, broker: Mosquitto) -> None:
    """For MQTT 5 clients of others; what is too long to be a name is left out, and the answer comes all the same."""
    place = Place(tmp_path, broker, source=CALM)
    given = [b"request 1", b"x" * (MAX_CORRELATION + 1), None]
    with Collector(broker.settings()) as heard, running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        for number, correlation in enumerate(given, 1):
            publish(broker, command(key(tmp_path), STATION, {"do": "test_alarm"}), correlation)
            wait_for(lambda: len(heard.payloads("/response")) == number)  # noqa: B023
        answers = [message.correlation for message in heard.received if message.topic.endswith("/response")]
        assert answers == [b"request 1", None, None]
        assert {m.correlation for m in heard.received if m.topic.endswith(("/alert", "/event"))} == {None}


def test_who_may_ask_for_what_and_how_often(tmp_path: Path, broker: Mosquitto) -> None:
    place = Place(tmp_path, broker, source=CALM, commands=["test_alarm"], commands_per_min=2)
    stranger = SigningKey.create(tmp_path / "stranger.pem")
    with Collector(broker.settings()) as heard, running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        status, _, err = place.ask("self-test")
        assert (status, "not in control.commands" in err) == (1, True)
        order = command(key(tmp_path), STATION, {"do": "test_alarm"})
        for payload in (command(stranger, STATION, {"do": "test_alarm"}), order, order):
            publish(broker, payload)
        wait_for(lambda: len(heard.bodies("response")) >= 2)
        for _ in range(4):
            time.sleep(0.01)  # revisions are milliseconds
            publish(broker, command(key(tmp_path), STATION, {"do": "test_alarm"}))
        wait_for(lambda: len(heard.bodies("response")) >= 6)
        time.sleep(0.5)
        said = [(body["status"], body["kind"]) for body in heard.bodies("response")]
        assert said[:2] == [("refused", "not_allowed"), ("done", None)], "nothing for a stranger, once for a repeat"
        assert ("refused", "rate") in said and len(said) == 6
        agent.wait_for("signed with a key that is not in this station's control.keys")


def test_a_key_that_is_taken_from_the_file_commands_no_more(tmp_path: Path, broker: Mosquitto) -> None:
    place = Place(tmp_path, broker, source=CALM)
    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        assert place.ask("test-alarm")[0] == 0
        other = SigningKey.create(tmp_path / "other.pem").trusted("own").public
        place.config.write_text(place.config.read_text().replace(key(tmp_path).trusted("own").public, other))
        agent.signal(signal.SIGHUP)
        agent.wait_for("was read anew")
        assert place.ask("test-alarm", "--wait", 3)[0] == 1
        agent.wait_for("signed with a key that is not in this station's control.keys")


def test_a_piece_that_comes_while_the_station_starts_is_used(tmp_path: Path, broker: Mosquitto) -> None:
    """The station connects when all that may come has somebody to take it: what the broker has for it comes at once."""
    place = Place(tmp_path, broker, source=CALM)
    offered = offer(place.newer(), SigningKey.load(place.key), STATION, promote="hold", url=None, valid_days=1)

    def begun() -> list[bytes]:
        return [part.read_bytes() for part in (tmp_path / "state" / "models").glob("*.part")]

    piece = offered.zipped[:CHUNK_BYTES]
    with running_agent("run", "--config", place.config) as agent:
        agent.wait_for("connected to")
        publish(broker, offered.payload, topic="talus/v1/XX/SLP/model/set")
        wait_for(begun)
    assert not begun()[0].startswith(piece)
    publish(broker, wrap(0, piece), topic="talus/v1/XX/SLP/model/chunk", retain=True)
    with running_agent("run", "--config", place.config):
        wait_for(lambda: begun()[0].startswith(piece), what="the piece is used")


def test_a_piece_that_nobody_can_take_yet_is_not_acknowledged(tmp_path: Path, broker: Mosquitto) -> None:
    """The broker keeps it for the next connection. Orders and commands wait at the gate."""
    orders = RemoteOrders(load(Place(tmp_path, broker).config), STATION)
    piece, order = (f"talus/v1/XX/SLP/{name}" for name in ("model/chunk", "command"))
    assert not orders.handlers[piece](Received(piece, wrap(0, b"piece"), False, None, 1))
    assert orders.handlers[order](Received(order, b"{}", False, None, 2))
