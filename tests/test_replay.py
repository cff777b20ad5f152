"""``talus replay``: recorded data through the whole line, to the terminal and over a real broker."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from agent_support import (
    ROOT,
    TALUS,
    by_revision,
    expected,
    on_disk,
    running_agent,
    talus,
    write_config,
    write_records,
)
from broker_support import Collector, Mosquitto, first_order, needs_mosquitto, running, wait_for
from records_support import counts, packaged_records, trace, write

from agent.cli import main
from agent.messages.schema import MODELS, parse

COPIES = 6
SPEED = 100
RIGHT, WRONG = "right-secret", "wrong-secret"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 minutes with a dozen earthquakes."""
    return write_records(tmp_path_factory.mktemp("records"), COPIES)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four minutes with two earthquakes."""
    return write_records(tmp_path_factory.mktemp("short"))


def persistent(folder: Path) -> Mosquitto:
    """A broker that keeps on disk what it has acknowledged, so that a loss can only be the agent's."""
    broker = Mosquitto(folder)
    lines = ("persistence true", f"persistence_location {folder}/", "autosave_interval 1", "autosave_on_changes true")
    config = folder / f"mosquitto-{broker.port}.conf"
    config.write_text(config.read_text().replace("persistence false", "\n".join(lines)))
    return broker.start()


@needs_mosquitto
@pytest.mark.parametrize("command", ["replay", "run"])
def test_a_broker_that_stops_and_starts_in_mid_replay_costs_nothing(
    tmp_path: Path, records: Path, command: str
) -> None:
    """Nothing is lost, the revisions of an event keep their order, and what arrives is what ``--json`` prints."""
    wanted = by_revision(list(expected(records)))
    broker = persistent(tmp_path)
    env = {"XDG_STATE_HOME": str(tmp_path / "state")}
    if command == "replay":
        arguments = ["replay", records, "--speed", SPEED, "--broker", f"mqtt://127.0.0.1:{broker.port}"]
    else:
        source = f"{{kind: archive, paths: ['{records}'], speed: {SPEED}}}"
        arguments = ["run", "--config", write_config(tmp_path, records, broker.port, source=source)]
    down: list[tuple[int, int]] = []
    try:
        with Collector(broker.settings(backoff_max_s=0.1)) as collector, running_agent(*arguments, env=env) as agent:

            def waiting() -> int:
                return sum(len(on_disk(box)) for box in (tmp_path / "state").rglob("*.sqlite3"))

            for share in (0.1, 0.4):
                wait_for(lambda: len(collector.bodies("/event")) >= share * len(wanted))  # noqa: B023
                stopped_ns = time.time_ns()
                broker.stop()
                before = waiting()
                wait_for(lambda: waiting() > before, what="something is decided in the outage")  # noqa: B023
                down.append((stopped_ns, time.time_ns()))
                broker.start()
            assert agent.end() == 0, agent.log
            wait_for(lambda: len(by_revision(collector.bodies("/event"))) >= len(wanted))
            bodies = collector.bodies("/event")
    finally:
        broker.stop()
    assert by_revision(bodies) == wanted
    assert all(revisions == sorted(revisions) for revisions in first_order(bodies).values())
    decided = sorted(body["timing"]["decided"] for body in bodies)
    for begin, end in down:
        iso = [
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9)) + f".{ns % 10**9:09d}Z" for ns in (begin, end)
        ]
        assert any(iso[0] < at < iso[1] for at in decided), "nothing was decided in the outage: the test proves nothing"
    assert {body["exercise"] for body in bodies} == {command == "replay"}


@needs_mosquitto
def test_a_broker_that_is_absent_gets_its_messages_later(tmp_path: Path, short: Path) -> None:
    """The command says how many messages wait, where and why; the next one to the same broker delivers them."""
    wanted = by_revision(list(expected(short)))
    env = {"XDG_STATE_HOME": str(tmp_path / "state")}
    broker = Mosquitto(tmp_path)
    address = f"mqtt://127.0.0.1:{broker.port}"
    status, _, err = talus("replay", short, "--broker", address, "--wait", 0, env=env)
    assert status == 1
    assert f"{len(wanted)} messages wait in {tmp_path}/state/talus/replay-127.0.0.1-{broker.port}.sqlite3" in err
    assert f"127.0.0.1:{broker.port} refused the connection\n" in err
    assert "hint: the next replay to this broker sends them" in err
    quiet = write(tmp_path / "quiet.mseed", trace(counts(2000) * 0))
    with running(tmp_path) as other, Collector(other.settings()) as collector:
        status, _, err = talus("replay", quiet, "--broker", f"mqtt://127.0.0.1:{other.port}", env=env)
        assert status == 0, err
        assert not collector.bodies("/event"), "what waits for one broker is not for another"
    broker.start()
    try:
        with Collector(broker.settings()) as collector:
            status, _, err = talus("replay", quiet, "--broker", address, env=env)
            assert (status, "wait" in err) == (0, False), err
            wait_for(lambda: len(collector.bodies("/event")) >= len(wanted))
            assert by_revision(collector.bodies("/event")) == wanted
    finally:
        broker.stop()


@needs_mosquitto
def test_refused_credentials_are_named_and_nothing_is_lost(tmp_path: Path, short: Path) -> None:
    """The password never shows; with the right one the messages go out."""
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", passwords, "slope", RIGHT], check=True)
    env = {"XDG_STATE_HOME": str(tmp_path / "state")}
    wanted = by_revision(list(expected(short)))
    with running(tmp_path, f"password_file {passwords}", anonymous=False) as broker:
        address = f"mqtt://slope@127.0.0.1:{broker.port}"
        wrong = {**env, "TALUS_MQTT_PASSWORD": WRONG}
        status, _, err = talus("replay", short, "--broker", address, "--wait", 2, env=wrong)
        assert status == 1
        assert f"{len(wanted)} messages wait" in err
        assert "refused the connection: Not authorized" in err
        assert WRONG not in err
        right = {**env, "TALUS_MQTT_PASSWORD": RIGHT}
        settings = broker.settings(username="slope", password=RIGHT)
        with Collector(settings) as collector:
            status, _, err = talus("replay", short, "--broker", address, env=right)
            assert status == 0, err
            wait_for(lambda: len(collector.bodies("/event")) >= 2 * len(wanted))
        assert by_revision(collector.bodies("/event")) == wanted
        assert len({body["boot_id"] for body in collector.bodies("/event")}) == 2


def test_ctrl_c_is_one_line(short: Path) -> None:
    with running_agent("replay", short, "--speed", 50, "--json") as agent:
        wait_for(lambda: agent.printed, what="the first event")
        agent.signal(signal.SIGINT)
        assert agent.end() == 130
    assert re.fullmatch(r"talus replay: stopped; 1 event, .* of data in .*\n", agent.log), agent.log


@needs_mosquitto
def test_ctrl_c_keeps_what_the_broker_does_not_have(tmp_path: Path, short: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path / "state")}
    with running(tmp_path) as broker:
        address = f"mqtt://127.0.0.1:{broker.port}"
        with running_agent("replay", short, "--broker", address, "--wait", 60, env=env) as agent:
            broker.kill()
            agent.wait_for("talus replay: 2 events")
            agent.signal(signal.SIGINT)
            assert agent.end() == 130
        assert "messages wait in" in agent.log
        assert "Traceback" not in agent.log


def test_a_reader_that_has_seen_enough_ends_it_quietly(records: Path) -> None:
    command = " ".join([*TALUS, "replay", "--json", str(records)])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["revision"] == 0
    assert done.stderr == ""


def test_what_it_prints_is_valid(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script may rely on the payloads of the schemas, one a line, with --json; without it comes a table,
    whether or not a terminal is there."""
    assert main(["replay", "--json", str(short)]) == 0
    with_flag = capsys.readouterr()
    bodies = [json.loads(line) for line in with_flag.out.splitlines()]
    for line, body in zip(with_flag.out.splitlines(), bodies, strict=True):
        parse(MODELS[body["schema"].split("/")[1]], line.encode())
    assert {body["exercise"] for body in bodies} == {False}
    assert main(["replay", str(short), "--packet", "7.3"]) == 0
    without = capsys.readouterr()
    header, *rows = without.out.splitlines()
    assert header.split() == [
        "station",
        "onset",
        "(UTC)",
        "ratio",
        "first",
        "verdict",
        "last",
        "verdict",
        "window",
        "alert",
    ]
    last = [body for body in bodies if body["phase"] == "end"]
    assert [row.split()[:2] for row in rows] == [[body["station"], body["onset"][:22]] for body in last]
    for row, body in zip(rows, last, strict=True):
        verdict = body["classification"]
        assert f"{verdict['label']} {verdict['probability']:.2f}" in row
    assert re.fullmatch(
        r"talus replay: 2 events, 0 alerts, 0 triggers discarded, 0 problems; "
        r"1 station, 3\.8 min of data in \d+\.\d s \(\d+ x real time\)\n",
        without.err,
    )


def test_a_terminal_gets_readable_lines_and_a_bar_that_does_not_run_into_them(short: Path) -> None:
    """The bar is there while it works and gone at the end; no line of output begins behind it."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [*TALUS, "replay", str(short), "--speed", "100"], stdout=slave, stderr=slave, cwd=ROOT
    ) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                shown += os.read(master, 65536)
            except OSError:  # EIO: the other end is closed
                break
        assert process.wait() == 0
    os.close(master)
    text = shown.decode()
    assert re.search(r"\d+%\|", text)
    lines = [re.split(r"\r|\x1b\[A", line)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    events = [line for line in lines if line.startswith("XX.SLP")]
    assert len(events) == len([body for body in expected(short) if body["phase"] == "end"])
    assert all(re.match(r"XX\.SLP\.\S+ +2026-03-01T", line) for line in events), events
    assert "%|" not in lines[-2] and lines[-2].startswith("talus replay: 2 events")


def test_damaged_files_are_named_and_the_rest_goes_on() -> None:
    """ObsPy's own test records, sound and damaged, gappy and empty, waveforms or not: no traceback, and a summary."""
    files = [path for path in packaged_records() if path.parts[-4] in ("mseed", "sac", "segy", "ascii")]
    assert len(files) > 80
    status, out, err = talus("replay", "--json", *files)
    assert status == 0, err
    assert "Traceback" not in err
    problems = re.search(r"(\d+) problems; (\d+) stations", err)
    assert problems is not None and int(problems[1]) > 20 and int(problems[2]) > 20, err[-500:]
    assert err.count("\ntalus replay: ") >= int(problems[1])
    for line in out.splitlines():
        body = json.loads(line)
        parse(MODELS[body["schema"].split("/")[1]], line.encode())


def test_data_that_the_trigger_cannot_use_do_not_end_it(
    tmp_path: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A channel of 20 samples a second beside a band from 15 Hz on: told once, and the other station is still heard."""
    slow = write(tmp_path / "slow.mseed", trace(counts(4000), "BHZ", rate=20.0, station="SLOW"))
    config = write_config(tmp_path, short, tunables="{trigger: {low_hz: 15, high_hz: 20, on: 3}}")
    assert main(["replay", "--config", str(config), str(slow), str(short)]) == 0
    said = capsys.readouterr()
    assert said.err.count("20 samples a second are too few") == 1
    assert "XX.SLP" in said.out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["replay"], 2, "nothing to replay"),
        (["replay", "x", "--speed", "-1"], 2, "the speed must be 0 or positive, not -1.0"),
        (["replay", "x", "--packet", "61"], 2, "--packet must be positive, and at most 60 s, not 61"),
        (["replay", "/nowhere"], 1, "no usable samples in /nowhere"),
        (["replay", "x", "--broker", "http://a"], 1, "not the address of a broker"),
        (["replay", "x", "--broker", "mqtt://[::1"], 1, "not the address of a broker"),
        (["replay", "x", "--broker", "mqtt://a:x"], 1, "not the address of a broker"),
        (["replay", "--config", "/nowhere"], 1, "/nowhere: cannot be read"),
    ],
)
def test_what_makes_no_sense_is_told(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    said = capsys.readouterr().err
    assert words in said
    assert "\n  hint: " in said
