"""The command line as scripts use it: ``classify``, ``check``, ``doctor``, and what all commands share."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import pytest
from agent_support import RATE_HZ, ROOT, START_NS, TALUS, running_agent, write_config, write_records
from broker_support import needs_mosquitto, own_port, running, wait_for
from config_support import BROKEN
from numpy.typing import NDArray
from records_support import counts, trace, write
from seedlink_server import authority

from agent import __version__
from agent.cli import COMMANDS, main
from agent.types import LABELS, NS, format_ns, parse_ns
from desk.commands import ask, config, model

Run: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """One command in this process: exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four minutes of station XX.SLP, three components in one file, with earthquakes after 30 s and 207 s."""
    folder = write_records(tmp_path_factory.mktemp("record"))
    file = folder / "slp.mseed"
    file.write_bytes(b"".join(path.read_bytes() for path in sorted(folder.glob("*.mseed"))))
    return file


ONSET_NS = START_NS + 30 * NS


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# What all commands share


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, run: Run) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert out.startswith(f"usage: talus {command}")
    assert re.search(rf"example:\n +talus {command}\b", out)


@pytest.mark.parametrize(
    ("command", "action"),
    [(command, action) for command in (ask, config, model) for action in command.EXAMPLES],
    ids=lambda value: value if isinstance(value, str) else value.__name__.rpartition(".")[2],
)
def test_every_action_has_help_with_an_example_that_it_takes(command: ModuleType, action: str, run: Run) -> None:
    name = command.__name__.rpartition(".")[2]
    status, out, _ = run(name, action, "--help")
    assert status == 0
    assert f"example:\n  {command.EXAMPLES[action]}\n" in out
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.parse_args(command.EXAMPLES[action].split()[2:])


def test_what_a_command_does_not_know_is_answered_with_its_own_usage(run: Run) -> None:
    status, out, err = run("doctor", "station.yaml")
    assert (status, out) == (2, "")
    assert err.startswith("usage: talus doctor")
    assert err.endswith("talus doctor: error: unrecognized arguments: station.yaml\n")


def test_help_and_version(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"    {name} " in out for name in COMMANDS)
    assert run() == (2, "", out), "without a command the same, as wrong usage"
    assert run("--version")[:2] == (0, f"talus {__version__}\n")


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["run"], ["classify", "--nonsense"], ["check"], ["watch"], ["-x", "run"]]
)
def test_wrong_usage_is_status_2(arguments: list[str], run: Run) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: talus")


@pytest.mark.parametrize("limit", [("--limit", "0"), ("--timeout", "-1"), ("--timeout", "0"), ("--timeout", "nan")])
def test_watch_refuses_an_end_before_its_beginning(limit: tuple[str, str], run: Run) -> None:
    status, out, err = run("watch", "--broker", "localhost", *limit)
    assert (status, out) == (2, "")
    assert limit[0] in err and "hint: give" in err


def test_the_agent_stays_light(record: Path) -> None:
    """None of these is needed on the device; scipy alone would cost 80 MB and most of a second at each start."""
    code = (
        "import sys\n"
        "from agent.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "heavy = {'scipy', 'torch', 'onnx', 'sklearn', 'matplotlib', 'quantize', 'pandas', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)), status, file=sys.stderr)\n"
    )
    for arguments in (["replay", "--json", str(record)], ["classify", str(record)], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stderr.splitlines()[-1][:2] == "[]", done.stderr


def test_numpy_works_on_one_thread() -> None:
    """A BLAS with a thread for each core makes verdicts wait tens of milliseconds on a machine that has other work."""
    code = (
        "import os, sys\n"
        "from agent.cli import main\n"
        "try:\n"
        "    main(['--version'])\n"
        "except SystemExit:\n"
        "    assert 'numpy' not in sys.modules\n"
        "import numpy\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    assert done.stdout.splitlines()[-1] == "1"


# classify


def test_classify_without_an_onset_takes_the_strongest_trigger(record: Path, run: Run) -> None:
    status, out, err = run("classify", record, "--json")
    [line] = lines(out)
    assert (status, err) == (0, "")
    assert list(line) == [
        "file", "station", "onset", "triggered", "label", "probability", "probabilities", "abstained", "window_s",
    ]  # fmt: skip
    assert (line["file"], line["station"], line["triggered"]) == (str(record), "XX.SLP.00.HH", True)
    assert abs(parse_ns(line["onset"]) - ONSET_NS) < NS
    assert list(line["probabilities"]) == list(LABELS)
    assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert line["probability"] == max(line["probabilities"].values()) == line["probabilities"][line["label"]]
    assert (line["label"], line["window_s"]) == ("earthquake", 81.92)


def test_classify_gives_the_verdicts_of_replay(record: Path, run: Run) -> None:
    """One preparation, one network: the verdict on a window is the same whichever command asks for it."""
    events = [body for body in lines(run("replay", "--json", record)[1]) if body["phase"] != "end"]
    assert len(events) > 8
    for event in events:
        seconds = event["classification"]["window_s"]
        [line] = lines(run("classify", record, "--json", "--onset", event["onset"], "--seconds", seconds)[1])
        assert line["probabilities"] == event["classification"]["probabilities"]
        assert line["window_s"] == seconds


def test_classify_never_sees_beyond_the_seconds_it_is_allowed(tmp_path: Path, record: Path, run: Run) -> None:
    """Else an early verdict in a table of results would be better than the station's."""
    arguments = ("--json", "--onset", format_ns(ONSET_NS), "--seconds", 5)
    whole = lines(run("classify", record, *arguments)[1])
    import obspy

    stream = obspy.read(str(record))
    for piece in stream:
        piece.data = np.array(piece.data)
        piece.data[RATE_HZ * 35 :] = counts(len(piece.data) - RATE_HZ * 35)
    changed = write(tmp_path / "changed.mseed", *stream)
    assert lines(run("classify", changed, *arguments)[1]) == [{**whole[0], "file": str(changed)}]


def test_classify_where_nothing_triggers_says_so(tmp_path: Path, run: Run) -> None:
    """The agent would be silent here; the verdict is then on the middle of the record."""
    quiet = write(tmp_path / "quiet.mseed", trace(np.random.default_rng(0).normal(0, 100, 12_000).astype(np.int32)))
    status, out, _ = run("classify", quiet, "--json")
    [line] = lines(out)
    assert (status, line["triggered"]) == (0, False)
    assert parse_ns(line["onset"]) == parse_ns("2024-05-01T12:01:00Z")
    assert "  quiet    " in run("classify", quiet)[1]


def test_classify_as_text_is_one_line_a_station(record: Path, run: Run) -> None:
    status, out, _ = run("classify", record, "--onset", format_ns(ONSET_NS))
    assert status == 0
    assert re.fullmatch(
        rf"{record}  XX\.SLP\.00\.HH  2026-03-01T00:00:30\.000Z  trigger  earthquake 0\.\d\d[ ?] 81\.9 s\n", out
    )


def test_classify_names_bad_files_and_goes_on(tmp_path: Path, record: Path, run: Run) -> None:
    """One bad file in a thousand must neither hide the others nor go unnoticed."""
    empty, text = tmp_path / "empty.mseed", tmp_path / "text.mseed"
    empty.write_bytes(b"")
    text.write_text("hello\n" * 100)
    files = [empty, record, text, tmp_path / "absent.mseed", tmp_path]
    status, out, err = run("classify", *files, "--json")
    assert status == 1
    assert [line.get("error", "") for line in lines(out)] == [
        "is empty",
        "",
        "is in no format that ObsPy reads",
        "cannot be read (No such file or directory)",
        "is a folder",
    ]
    assert [line["file"] for line in lines(out)] == [str(file) for file in files]
    assert err == "talus classify: 4 of 5 could not be classified\n"
    status, out, err = run("classify", empty)
    assert (status, out) == (1, f"{empty}  error: is empty\n")
    assert "  hint: delete it, or fetch it again from the recorder\n" in err


def test_classify_takes_files_and_onsets_from_a_table(tmp_path: Path, record: Path, run: Run) -> None:
    """Paths are relative to the table, whose columns may come in any order; Excel's byte order mark does no harm."""
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.mseed").write_bytes(record.read_bytes())
    rows = [
        "notes,trace_onset_time,trace_name",
        f"first,{format_ns(ONSET_NS)},records/a.mseed",
        "no onset,,records/a.mseed",
        "outside,2020-01-01T00:00:00Z,records/a.mseed",
        "not a time,yesterday,records/a.mseed",
        "absent,,records/b.mseed",
    ]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    status, out, _ = run("classify", "--table", table, "--json")
    found = lines(out)
    assert status == 1
    assert [line["file"] for line in found] == ["records/a.mseed"] * 4 + ["records/b.mseed"]
    assert found[0]["onset"] == format_ns(ONSET_NS)
    assert abs(parse_ns(found[1]["onset"]) - ONSET_NS) < NS
    assert "is outside the record" in found[2]["error"]
    assert found[3]["error"] == "'yesterday' is not a time"
    assert "No such file" in found[4]["error"]
    moved = lines(run("classify", "--table", table, "--onset", format_ns(ONSET_NS + NS), "--json")[1])
    assert {line.get("onset") for line in moved[:4]} == {format_ns(ONSET_NS + NS)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read as a table: No such file or directory"),
        (b"a,b\n1,2\n", "has no column trace_name and no column trace_onset_time"),
        (b"", "has no column trace_name and no column trace_onset_time"),
        (b"trace_name,trace_onset_time\n,2020-01-01T00:00:00Z\n", ":2: no trace_name"),
        (b"trace_onset_time,trace_name\n2020-01-01T00:00:00Z\n", ":2: no trace_name"),
        (b"trace_name,trace_onset_time\n\xff\xfe\n", "cannot be read as a table"),
    ],
)
def test_classify_refuses_what_is_no_such_table(tmp_path: Path, text: bytes | None, words: str, run: Run) -> None:
    table = tmp_path / "table.csv"
    if text is not None:
        table.write_bytes(text)
    status, out, err = run("classify", "--table", table)
    assert (status, out) == (1, "")
    assert words in err
    assert "\n  hint: " in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to classify"),
        (["x", "--seconds", "0"], "--seconds must be positive, and at most 81.92, not 0"),
        (["x", "--seconds", "90"], "--seconds must be positive, and at most 81.92, not 90"),
        (["x", "--onset", "noon"], "--onset: 'noon' is not a time"),
    ],
)
def test_classify_refuses_what_makes_no_sense(arguments: list[str], words: str, run: Run) -> None:
    status, _, err = run("classify", *arguments)
    assert status == 2
    assert words in err
    assert "\n  hint: " in err


def test_classify_uses_the_trigger_and_the_classifier_of_a_configuration(
    tmp_path: Path, record: Path, run: Run
) -> None:
    config = write_config(
        tmp_path, record, classifier="{backends: ['constant:blast']}", tunables="{trigger: {on: 900, off: 800}}"
    )
    [line] = lines(run("classify", record, "--config", config, "--json")[1])
    assert (line["label"], line["triggered"]) == ("blast", False)


def test_classify_to_a_reader_that_has_seen_enough(record: Path) -> None:
    command = " ".join([*TALUS, "classify", *[str(record)] * 3])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.full(12_000, 7.0), "do not change"),
        (np.where(np.arange(12_000) % 4 == 0, np.nan, 7.0), "3000 of 12000 samples are not finite"),
    ],
)
def test_classify_says_what_the_record_lacks(
    tmp_path: Path, samples: NDArray[np.float64], words: str, run: Run
) -> None:
    dead = write(tmp_path / "dead.mseed", trace(samples.astype(np.float32)))
    status, out, err = run("classify", dead)
    assert status == 1
    assert "do not change" in out and words in out + err
    assert run("replay", dead)[2].count("are not finite") == words.count("are not finite")


def test_check_and_doctor_tell_scripts_what_is_wrong(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "station.yaml"
    file.write_text("station: {network: XX}\n")
    status, out, _ = run("check", "--config", file, "--json")
    assert status == 1
    assert {"line", "field", "reason"} <= lines(out)[0].keys()
    assert {line["what"] for line in lines(run("doctor", "--json")[1])} >= {"software", "model"}


def test_classify_over_labelled_records(data_dir: Path, tmp_path: Path, run: Run) -> None:
    """A sample of the real table: every record gets a verdict, at the onset that the table says."""
    with (data_dir / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[::60]
    table = tmp_path / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trace_name", "trace_onset_time"])
        writer.writerows([data_dir / row["trace_name"], row["trace_onset_time"]] for row in rows)
    status, out, err = run("classify", "--table", table, "--json")
    found = lines(out)
    assert (status, err, len(found)) == (0, "", len(rows))
    for row, line in zip(rows, found, strict=True):
        if row["trace_onset_time"]:
            assert parse_ns(line["onset"]) == parse_ns(row["trace_onset_time"])
        assert line["label"] in LABELS


# check


@pytest.mark.parametrize("name", BROKEN)
def test_check_tells_everything_that_is_wrong(name: str, tmp_path: Path, run: Run) -> None:
    text, messages = BROKEN[name]
    file = tmp_path / "site.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    status, out, err = run("check", "--config", file)
    assert (status, out) == (1, "")
    *told, hint = err.splitlines()
    assert sorted(told) == sorted(f"{tmp_path}/{message}" for message in messages)
    assert hint == "  hint: `talus docs configuration` lists every setting"
    assert "hunter2" not in err


def test_check_of_a_good_file_and_of_none(tmp_path: Path, record: Path, run: Run) -> None:
    good = write_config(tmp_path, record)
    assert run("check", "--config", good) == (0, f"{good}: good\n", "")
    warned = write_config(tmp_path / "warned", "nowhere")
    status, _, err = run("check", "--config", warned)
    assert (status, "warning: source.paths[0]: nothing is there" in err) == (0, True), "a warning is no error"
    status, out, err = run("check", "--config", tmp_path / "absent.yaml")
    assert (status, out) == (1, "")
    told = f"{tmp_path}/absent.yaml: cannot be read: No such file or directory\n  hint: check the path"
    assert err.startswith(told), "the settings have nothing to do with it"


@pytest.mark.parametrize("command", ["run", "replay", "classify"])
def test_a_broken_configuration_stops_every_command_that_needs_it(command: str, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("station: {network: XX}\n")
    arguments = ["x"] if command == "classify" else []
    status, out, err = run(command, *arguments, "--config", file)
    assert (status, out) == (1, "")
    assert f"talus {command}: {file}:1: station.station: is required" in err
    assert f"{file}:1: source: is required" in err


# doctor


def findings(out: str) -> dict[str, tuple[str, str]]:
    """State and text of each thing that the doctor looked at."""
    rows = re.findall(r"^(ok|--|BAD) +(\S+) +(.*)$", out, re.MULTILINE)
    return {what: (state, text) for state, what, text in rows}


def test_doctor_without_a_configuration_looks_at_the_machine(run: Run) -> None:
    status, out, err = run("doctor")
    found = findings(out)
    assert found["config"][0] == "--"
    assert found["model"][0] == "ok"
    assert found["onnxruntime"][0] == "ok" and "golden windows agree" in found["onnxruntime"][1]
    assert found["clock"][0] in ("ok", "BAD", "--")
    assert status == any(state == "BAD" for state, _ in found.values())
    assert ("all well" in err) == (status == 0)


@needs_mosquitto
def test_doctor_on_a_station_that_is_well(tmp_path: Path, record: Path, run: Run) -> None:
    """It looks and leaves nothing behind: a folder made by root would be closed to the agent's user."""
    with running(tmp_path) as broker:
        config = write_config(tmp_path / "site", record, broker.port)
        found = findings(run("doctor", "--config", config)[1])
    assert found["source"] == ("ok", "archive: FDSN:XX_SLP_00_H_H_E at 50 Hz")
    assert found["broker"] == ("ok", f"127.0.0.1:{broker.port} accepts us, MQTT 5")
    assert found["state"][0] == "ok" and "will be made" in found["state"][1]
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["station.yaml"]


def test_doctor_as_root_writes_where_no_link_of_the_agent_leads(tmp_path: Path, record: Path, run: Run) -> None:
    """Whoever takes over the agent owns its state folder, and waits there for an operator with sudo."""
    victim = tmp_path / "shadow"
    victim.write_text("root")
    config = write_config(tmp_path / "site", record)
    state = tmp_path / "site" / "state"
    state.mkdir()
    (state / f".doctor-{os.getpid()}").symlink_to(victim)
    found = findings(run("doctor", "--config", config)[1])
    assert found["state"][0] == "ok"
    assert victim.read_text() == "root"


def test_doctor_on_a_station_that_is_not(tmp_path: Path, run: Run) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    port = own_port()
    config = write_config(tmp_path, "nowhere", port, state_dir=str(blocked / "state"))
    status, out, err = run("doctor", "--config", config)
    found = findings(out)
    assert status == 1
    assert found["source"][0] == "BAD" and "no usable samples in" in found["source"][1]
    assert found["broker"] == ("BAD", f"127.0.0.1:{port} refused the connection")
    assert found["state"][0] == "BAD"
    assert out.count("hint: ") == sum(state == "BAD" for state, _ in found.values())
    assert re.search(r"talus doctor: \d problems found\n", err)


@needs_mosquitto
def test_doctor_names_a_broker_that_is_not_where_it_should_be(tmp_path: Path, record: Path, run: Run) -> None:
    """A host that is not there, a certificate of another host, and one of an authority that nobody named."""
    ca, _ = authority(tmp_path, "digitizer.example")
    lines = (f"certfile {tmp_path}/server.pem", f"keyfile {tmp_path}/server.key")
    with running(tmp_path, *lines) as broker:
        here = f"host: 127.0.0.1, port: {broker.port}"
        cases = {
            "{host: broker.invalid}": "no address for 'broker.invalid'",
            f"{{{here}, tls: {{ca_file: {ca}}}}}": "certificate is not valid for '127.0.0.1'",
            f"{{{here}, tls: {{}}}}": "is not trusted",
        }
        for number, (mqtt, words) in enumerate(cases.items()):
            config = write_config(tmp_path / str(number), record, mqtt=mqtt)
            status, out, _ = run("doctor", "--config", config)
            state, text = findings(out)["broker"]
            assert (status, state) == (1, "BAD")
            assert words in text
            assert f"{text}\n                  hint: " in out


def test_doctor_leaves_the_positions_of_a_folder_to_the_service(tmp_path: Path, record: Path, run: Run) -> None:
    """What is made by root is closed to the agent's user; and what the doctor reads is not read for the service."""
    (tmp_path / "state").mkdir()
    source = f"{{kind: folder, paths: ['{record.parent}'], backlog_s: 3153600000}}"
    config = write_config(tmp_path, record, source=source)
    found = findings(run("doctor", "--config", config)[1])
    assert found["source"] == ("ok", "folder: FDSN:XX_SLP_00_H_H_E at 50 Hz")
    assert list((tmp_path / "state").iterdir()) == []


@contextmanager
def digitizer(port: int, offset_s: float) -> Iterator[None]:
    """Sends a datagram of 25 samples each quarter of a second, with a clock that is so far ahead."""
    end = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while True:
                text = f"{{'EHZ', {time.time() - 0.25 + offset_s:.3f}, {', '.join('7' * 25)}}}"
                sock.sendto(text.encode(), ("127.0.0.1", port))
                if end.wait(0.25):
                    return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def shake(port: int, sender: str = "127.0.0.1", timeout_s: int = 30) -> str:
    return f"{{kind: shake_udp, port: {port}, timeout_s: {timeout_s}, senders: [{{address: {sender}}}]}}"


@pytest.mark.parametrize(
    ("sends", "said"),
    [
        ((0.0, "127.0.0.1"), "ok: s old when it comes"),
        ((5.0, "127.0.0.1"), "BAD: s ahead of this machine's clock"),
        ((-5.0, "127.0.0.1"), "BAD: its newest sample is "),
        ((-1024 * 7 * 86_400.0, "127.0.0.1"), "BAD: the recorder's clock is 1024 weeks behind"),
        ((0.0, "192.0.2.1"), "BAD: datagrams from 127.0.0.1 are dropped"),
        ((None, "127.0.0.1"), "BAD: nothing usable from XX.SLP (127.0.0.1) for 1 s"),
    ],
)
def test_doctor_judges_a_digitizer_that_sends_datagrams(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, sends: tuple[float | None, str], said: str
) -> None:
    offset_s, sender = sends
    if "newest" not in said and "clock" not in said and "ok" not in said:
        monkeypatch.setattr("agent.commands.doctor.SOURCE_WAIT_S", 3.0)
    port = own_port()
    config = write_config(tmp_path, "", source=shake(port, sender, 1 if offset_s is None else 30))
    with digitizer(port, offset_s) if offset_s is not None else nullcontext():
        out = run("doctor", "--config", config)[1]
    state, _, words = said.partition(": ")
    found = findings(out)["source"]
    assert found[0] == state
    assert words in found[1]
    assert out.count("hint: ") >= (state == "BAD")


def test_doctor_does_not_take_the_running_agent_for_a_fault(tmp_path: Path, run: Run) -> None:
    port = own_port()
    config = write_config(tmp_path, "", source=shake(port))
    with running_agent("run", "--config", config) as agent:
        wait_for((tmp_path / "state" / "status.json").exists)
        found = findings(run("doctor", "--config", config)[1])
    assert found["source"] == ("--", f"shake_udp: port {port} is the running agent's (process {agent.process.pid})")


def test_doctor_with_a_broken_configuration_names_each_error(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("station: {network: XX}\n")
    status, out, _ = run("doctor", "--config", file)
    assert status == 1
    assert len(re.findall(r"^BAD  config ", out, re.MULTILINE)) == 2
    assert findings(out)["model"][0] == "ok", "the rest is looked at all the same"


def test_doctor_names_a_bundle_that_is_damaged(tmp_path: Path, record: Path, run: Run) -> None:
    from agent.inference.bundle import DEFAULT_BUNDLE

    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in DEFAULT_BUNDLE.iterdir():
        data = bytearray(file.read_bytes())
        if file.name == "model.cpu.onnx":
            data[1000] ^= 1
        (bundle / file.name).write_bytes(data)
    config = write_config(tmp_path, record, classifier=f"{{bundle: {bundle}}}")
    status, out, _ = run("doctor", "--config", config)
    assert status == 1
    assert "model.cpu.onnx" in out
    status, _, err = run("replay", "--config", config)
    assert status == 1
    assert "model.cpu.onnx" in err and "\n  hint: " in err


def test_no_command_needs_a_home(record: Path) -> None:
    """A service user often has none that it may write to."""
    env = {**os.environ, "HOME": "/nonexistent", "XDG_STATE_HOME": "", "XDG_CACHE_HOME": ""}
    for arguments in (["classify", str(record)], ["replay", "--json", str(record)]):
        done = subprocess.run([*TALUS, *arguments], capture_output=True, text=True, cwd=ROOT, env=env, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
