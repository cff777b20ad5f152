"""Threats of docs/security.md that take a whole station to show: a real process, a real broker, and its password."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_support import ROOT, running_agent, talus, write_config
from broker_support import Collector, Mosquitto, needs_mosquitto, running, wait_for
from control_support import control, envelope, key

from agent.config.broker import MqttSettings
from agent.deliver.connection import Connection
from agent.deliver.sockets import Waker
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.types import StationId
from desk.push.models import command

pytestmark = needs_mosquitto
LIVELY = "{kind: simulator, speed: 20, seed: 5, rates: {slopequakes_per_hour: 120, rockfalls_per_hour: 60}}"
ROOT_TOPIC = "talus/v1/XX/SLP"
SECRET = "hunter2-secret"  # noqa: S105 - the point of the test


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[tuple[Mosquitto, Path, MqttSettings]]:
    """A broker that wants a password, the file that holds it, and settings that know it."""
    passwords, secret = folder / "passwords", folder / "secret"
    subprocess.run(["mosquitto_passwd", "-c", "-b", passwords, "slope", SECRET], check=True)
    passwords.chmod(0o600)
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    with running(folder, f"password_file {passwords}", anonymous=False) as broker:
        yield broker, secret, broker.settings(username="slope", password=SECRET)


def flood(settings: MqttSettings, payloads: dict[str, list[bytes]]) -> None:
    """Publish it all as fast as the broker takes it."""
    with contextlib.closing(Waker()) as waker:
        enemy = Connection.open(settings, "enemy", waker)
        tokens = {enemy.publish(f"{ROOT_TOPIC}/{name}", p) for name, several in payloads.items() for p in several}
        while tokens:
            tokens -= {ack.token for ack in enemy.pump(1.0)}
        enemy.close()


def test_a_stolen_password_gives_a_flood_of_commands_but_no_command(tmp_path: Path) -> None:
    """Strangers' orders, a captured one again and again, rubbish and giants, thousands of them: nothing is obeyed,
    events go on, memory stays, and the operator is heard afterwards."""
    signing, stranger = key(tmp_path), key(tmp_path, "stranger")
    with guarded(tmp_path) as (broker, secret, settings), Collector(settings) as heard:
        mqtt = f"{{host: 127.0.0.1, port: {broker.port}, username: slope, password_file: {secret}}}"
        config = write_config(tmp_path / "site", "", source=LIVELY, mqtt=mqtt, control=control(signing))
        with running_agent("run", "--config", config) as agent:
            wait_for(lambda: heard.bodies("/event"))
            where = ("--broker", f"mqtt://slope@127.0.0.1:{broker.port}", "--station", "XX.SLP")
            ask = ("ask", "test-alarm", *where, "--key", tmp_path / "key.pem")
            for _ in range(2):
                assert talus(*ask, env={"TALUS_MQTT_PASSWORD": SECRET})[0] == 0
            captured = heard.payloads("/command")
            before, memory_kb = len(heard.bodies("/event")), resident_kb(agent.process.pid)
            forged = command(stranger, StationId("XX", "SLP", "", ""), {"do": "test_alarm"})
            flood(
                settings,
                {
                    "command": [*captured, forged, b"[" * 50_000, b"x" * 90_000] * 300,
                    "model/set": [envelope(stranger, n, {}, kind="model") for n in range(1, 301)],
                    "model/chunk": [bytes(4) + os.urandom(30_000)] * 300,
                },
            )
            wait_for(lambda: len(heard.bodies("/event")) >= before + 3, what="events go on")
            time.sleep(1.0)
            assert talus(*ask, env={"TALUS_MQTT_PASSWORD": SECRET})[0] == 0, "the operator is heard"
            alarms = [body for body in heard.bodies("/alert") if body["reason"].startswith("test alarm")]
            assert len(alarms) == 3
            answers = [body["status"] for body in heard.bodies("/response")]
            assert answers.count("done") == 3
            assert 1 <= answers.count("refused") <= 20, "and does not talk much"
            assert agent.log.count("a remote order is refused") < 20, "the log is no place for a flood"
            assert resident_kb(agent.process.pid) < memory_kb + 50_000
            assert "Traceback" not in agent.log


def resident_kb(pid: int) -> int:
    """Memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def test_no_password_is_on_the_broker_in_a_process_list_in_the_log_or_in_the_state_folder(tmp_path: Path) -> None:
    """What everyone on either machine can see: messages, and the arguments of the agent and of what it starts; and
    what is given away with a log or a copy of the state folder."""
    signing = key(tmp_path)
    with guarded(tmp_path) as (broker, secret, settings), Collector(settings) as heard:
        mqtt = f"{{host: 127.0.0.1, port: {broker.port}, username: slope, password_file: {secret}}}"
        config = write_config(
            tmp_path / "site", "", source=LIVELY, mqtt=mqtt, control=control(signing), log="{level: debug}"
        )
        state = tmp_path / "site" / "state"
        with running_agent("run", "--config", config) as agent:
            wait_for(lambda: heard.bodies("/state") and heard.bodies("/health") and heard.bodies("/event"))
            wait_for((state / "status.json").exists)
            for one in (agent.process.pid, *children(agent.process.pid)):
                assert SECRET.encode() not in Path(f"/proc/{one}/cmdline").read_bytes()
            assert SECRET not in agent.log
            for path in [path for path in state.rglob("*") if path.is_file()]:
                assert SECRET.encode() not in path.read_bytes(), path
            assert (state / "control").stat().st_mode & 0o077 == 0
        assert not [message.topic for message in heard.received if SECRET.encode() in message.payload]


def children(pid: int) -> list[int]:
    """Processes that ``pid`` has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_the_agent_writes_is_for_its_user_alone(tmp_path: Path) -> None:
    """A local user who may enter the state folder (one that was there before, and is open to all) reads nothing."""
    state = tmp_path / "site" / "state"
    state.mkdir(parents=True, mode=0o755)
    with running(tmp_path) as broker, Collector(broker.settings()) as heard:
        config = write_config(tmp_path / "site", "", broker.port, source=LIVELY, control=control(key(tmp_path)))
        start = ("sh", "-c", 'umask 022; exec "$@"', "sh", sys.executable, "-m", "agent", "run", "--config", config)
        with subprocess.Popen(start, cwd=ROOT, stderr=subprocess.PIPE) as agent:
            try:
                wait_for(lambda: any(body["evidence"] for body in heard.bodies("/event")))
                wait_for((state / "status.json").exists)
            finally:
                agent.terminate()
    names = {path.name for path in state.rglob("*")}
    assert {"outbox.sqlite3", "evidence", "status.json"} <= names
    open_to_others = [str(p) for p in state.rglob("*") if stat.S_IMODE(p.stat().st_mode) & 0o077]
    assert not open_to_others


@pytest.mark.parametrize(
    "words",
    [
        ("config", "push", "{file}", "--broker", "mqtt://slope:hunter2-secret@127.0.0.1:1"),
        ("watch", "--broker", "mqtt://slope:hunter2-secret@127.0.0.1:1"),
        ("watch", "--broker", "mqtt://slope:hunter2-secret@127.0.0.1:x"),
        (
            "ask",
            "self-test",
            "--key",
            "{key}",
            "--station",
            "XX.SLP",
            "--broker",
            "mqtt://s:hunter2-secret@127.0.0.1:1",
        ),
        ("replay", "--broker", "mqtt://slope:hunter2-secret@127.0.0.1:99999", "{file}"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_an_error_shows_no_password_of_an_address(tmp_path: Path, words: tuple[str, ...]) -> None:
    signing = key(tmp_path)
    (tmp_path / "order.json").write_bytes(envelope(signing, 1, {}))
    names = {"file": tmp_path / "order.json", "key": tmp_path / "key.pem"}
    status, out, err = talus(*(word.format(**names) for word in words))
    assert status != 0 and err
    assert SECRET not in out + err


@pytest.mark.parametrize("module", ["agent.inference.onnxruntime", "quantize.quantise.infer"])
def test_nothing_is_told_to_the_maker_of_the_runtime(tmp_path: Path, module: str) -> None:
    """Where it reports, ONNX Runtime also keeps an identifier of the machine and a queue in the home folder."""
    program = f"""
import importlib, sys
from pathlib import Path
importlib.import_module({module!r})
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
open_files = [str(path.resolve()) for path in Path("/proc/self/fd").iterdir()]
assert not any("Microsoft" in path for path in open_files), open_files
"""
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    model = DEFAULT_BUNDLE / "model.cpu.onnx"
    subprocess.run([sys.executable, "-c", program, model], cwd=ROOT, env=env, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
