"""A restart in the middle of an event: its story goes on, nothing of it is missing and nothing is told twice."""

from __future__ import annotations

import itertools
import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_acceleration import ended, rules

from agent.alert.coincidence import CoincidenceJudge, blindness
from agent.alert.policy import Policy
from agent.alert.reporter import Reporter
from agent.config.file import ClassifierConfig, PolicyConfig, TunablesConfig
from agent.config.policy import CoincidenceConfig
from agent.detect.resume import LOST, EventResume, JournalEntry, PendingPackets, decode, encode
from agent.errors import DataError
from agent.health.report import Health, Identity
from agent.messages.payloads import Message, Priority
from agent.service.assemble import build_line
from agent.service.threads import Runner
from agent.types import NS, Event, SampleBlock, StationId, StreamId

STATION = StationId("XX", "SLP", "00", "HH")
START_S = 1_767_225_600
SECONDS = 900
ALERTING = TunablesConfig.model_validate(
    {"policy": {"rules": {"landslide": {"severity": "minor", "refractory_s": 60, "min_probability": 0.2}}}}
)


@cache
def packets(loud: tuple[int, ...] = (300, 420, 430, 500, 640)) -> tuple[SampleBlock, ...]:
    """A second each and three components: noise, with bursts that decay, some of them into each other."""
    rng = np.random.default_rng(3)
    envelope = np.ones(SECONDS * 100) * 60
    for second in loud:
        envelope[second * 100 :] += 6000 * np.exp(-np.arange((SECONDS - second) * 100) / 600)
    data = (rng.normal(size=(3, SECONDS * 100)) * envelope).astype(np.int32)
    return tuple(
        SampleBlock(StreamId(STATION, c), (START_S + second) * NS, 100.0, data[row, second * 100 : second * 100 + 100])
        for second in range(SECONDS)
        for row, c in enumerate("ENZ")
    )


@cache
def numbers() -> dict[tuple[StreamId, int], int]:
    """Which packet is which."""
    return {(block.stream, block.end_ns): number for number, block in enumerate(packets())}


class Runs:
    """Agents one after another over one source that can resume, each with the journal of those before it."""

    def __init__(self) -> None:
        self.journal: list[bytes] = []
        self.messages: list[Message] = []
        self.position = 0

    def run(self, until: int, *, stop: bool = False) -> None:
        """From where the source resumes to packet ``until``; then ``kill -9``, or a stop in order."""
        line = build_line(ALERTING, ClassifierConfig(backends=("constant:landslide",)), "talus/v1")
        line.reporter.resume([decode(record) for record in self.journal])
        taken = self.position

        def take(block: SampleBlock) -> None:
            nonlocal taken
            taken = numbers()[block.stream, block.end_ns] + 1

        holdback = PendingPackets(line.pipeline, take)
        for block in packets()[self.position : until]:
            outputs = line.pipeline.feed(block)
            now_ns = line.pipeline.stations[STATION].time_ns
            self.put(line.reporter.overdue(STATION, now_ns, 0))
            for output in outputs:
                if isinstance(output, Event):
                    self.put(line.reporter.report(output, 0))
            holdback.add(block)
            holdback.release()
        if stop:
            for output in line.pipeline.flush():
                if isinstance(output, Event):
                    self.put(line.reporter.report(output, 0, cut=True))
        self.position = taken

    def put(self, messages: Sequence[Message]) -> None:
        self.messages += messages
        self.journal += [message.journal for message in messages if message.journal is not None]

    def told(self, priority: Priority = Priority.EVENT) -> list[dict[str, Any]]:
        return [json.loads(m.payload) for m in self.messages if m.priority is priority and not m.retain]


def summary(bodies: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(body["id"], body["revision"], body["phase"], body.get("action")) for body in bodies]


@cache
def undisturbed() -> Runs:
    runs = Runs()
    runs.run(len(packets()))
    assert len({body["id"] for body in runs.told()}) >= 4
    return runs


@pytest.mark.parametrize("second", [301, 304, 306, 312, 330, 382, 384, 421, 425, 431, 434, 505, 600, 602, 650])
def test_kill_9_at_any_moment_of_an_event_changes_nothing_that_is_told(second: int) -> None:
    """Same identifiers, same revisions, same alerts, each once and in order; as if there had been no restart."""
    runs = Runs()
    runs.run(3 * second)
    runs.run(len(packets()))
    assert summary(runs.told()) == summary(undisturbed().told())
    assert summary(runs.told(Priority.ALERT)) == summary(undisturbed().told(Priority.ALERT))


@settings(max_examples=6)
@given(st.lists(st.integers(200, SECONDS), max_size=6))
def test_any_number_of_kills_changes_nothing_that_is_told(seconds: list[int]) -> None:
    runs = Runs()
    for second in sorted(seconds):
        runs.run(3 * second)
    runs.run(len(packets()))
    assert summary(runs.told()) == summary(undisturbed().told())
    assert summary(runs.told(Priority.ALERT)) == summary(undisturbed().told(Priority.ALERT))


def test_an_event_that_a_stop_ended_goes_on_after_the_start() -> None:
    """Two seconds after the onset the agent is stopped for an update: what the slope then does must still be told."""
    runs = Runs()
    runs.run(3 * 302, stop=True)
    first = runs.told()
    assert [body["phase"] for body in first] == ["end"]
    assert not runs.told(Priority.ALERT), "after two seconds no rule is met"
    runs.run(len(packets()))
    story = [body for body in runs.told() if body["id"] == first[0]["id"]]
    assert [body["revision"] for body in story] == list(range(len(story)))
    assert story[-1]["phase"] == "end" and story[-1]["classification"]["window_s"] == 81.92
    assert [body["action"] for body in runs.told(Priority.ALERT) if body["id"] == first[0]["id"]] == ["raise"]


class Dying:
    """A source that breaks down two seconds after an onset."""

    def blocks(self) -> Iterator[SampleBlock]:
        yield from packets()[: 3 * 302]
        raise OSError("the disk is gone")

    def close(self) -> None:
        pass


def test_an_event_that_was_open_when_the_source_died_goes_on_after_the_start(tmp_path: Path) -> None:
    """systemd starts the agent again, the source gives the data once more, and the slide is still going on."""
    runs = Runs()
    line = build_line(ALERTING, ClassifierConfig(backends=("constant:landslide",)), "talus/v1")
    line.reporter.resume([])
    runner = Runner(Dying(), line, Health(Identity(STATION, "0" * 16), tmp_path), runs.put)
    runner.start()
    assert runner.ended.wait(60)
    assert runner.failure() is not None
    assert [body["phase"] for body in runs.told()] == ["end"]
    runs.run(len(packets()))
    story = [body for body in runs.told() if body["id"] == runs.told()[0]["id"]]
    assert [body["revision"] for body in story] == list(range(len(story)))
    assert story[-1]["classification"]["window_s"] == 81.92


class Gives:
    """A source of these packets, which says when the service has taken the last of them."""

    def __init__(self, blocks: Sequence[SampleBlock]) -> None:
        self._blocks = blocks
        self.given = threading.Event()

    def blocks(self) -> Iterator[SampleBlock]:
        yield from self._blocks
        self.given.set()

    def close(self) -> None:
        pass


def served(runs: Runs, folder: Path, blocks: Sequence[SampleBlock], site: CoincidenceJudge | None = None) -> None:
    """The service's own threads over these packets, with the journal of the runs before."""
    line = build_line(ALERTING, ClassifierConfig(backends=("constant:landslide",)), "talus/v1", site=site)
    line.reporter.resume([decode(record) for record in runs.journal])
    source = Gives(blocks)
    runner = Runner(source, line, Health(Identity(STATION, "0" * 16), folder), runs.put)
    runner.start()
    assert source.given.wait(60)  # a stop before that leaves unread what the test is about
    runner.stop(60)
    assert runner.failure() is None


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    """Identifier, phase and revision of the events that the log names."""
    said = (record.getMessage() for record in caplog.records if record.name == "agent.service.threads")
    return [tuple(line.split(":")[0].split()) for line in said if re.match(r"\S+Z (new|update|end) r", line)]


def sent(messages: Sequence[Message]) -> list[tuple[str, ...]]:
    bodies = [json.loads(m.payload) for m in messages if m.priority is Priority.EVENT]
    return [(body["id"], body["phase"], f"r{body['revision']}") for body in bodies]


def test_after_a_restart_the_log_names_the_events_that_were_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Identifier, revision and phase are those of the message, also where an event goes on that an earlier run began,
    and where one is ended that does not come again."""
    caplog.set_level(logging.DEBUG)
    runs = Runs()
    runs.run(3 * 304)
    runs.run(3 * 424)
    before = len(runs.messages)
    served(runs, tmp_path, packets()[3 * 200 : 3 * 340] + packets()[3 * 560 :])
    told = sent(runs.messages[before:])
    assert any(phase == "end" for _, phase, _ in told)
    assert any(json.loads(m.payload).get("reason") == LOST for m in runs.messages[before:])
    assert logged(caplog) == told


def test_the_log_names_the_events_of_the_site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    names = ("XX.SLP", "XX.TOP")
    site = CoincidenceJudge(CoincidenceConfig(stations=names), StationId("XX", "SITE", "", ""), blindness(ALERTING))
    other = StationId("XX", "TOP", "00", "HH")
    both = [
        block
        for one in packets()[: 3 * 420]
        for block in (one, replace(one, stream=StreamId(other, one.stream.component)))
    ]
    runs = Runs()
    served(runs, tmp_path, both, site)
    told = sent(runs.messages)
    assert any(name.startswith("XX.SITE-") for name, _, _ in told)
    assert logged(caplog) == told


def test_an_event_whose_data_do_not_come_again_is_ended_with_the_reason() -> None:
    runs = Runs()
    runs.run(3 * 304)
    assert runs.told()[-1]["phase"] == "new"
    runs.position = 3 * 560
    runs.run(len(packets()))
    story = [body for body in runs.told() if body["id"] == runs.told()[0]["id"]]
    assert [body["phase"] for body in story] == ["new", "end"]
    assert story[-1]["reason"] == LOST


def test_a_clock_set_back_after_a_restart_hides_no_event() -> None:
    """What is told already is only what comes again right after the restart, not what happens at the same hour."""
    runs = Runs()
    runs.run(len(packets()))
    known = [decode(record) for record in runs.journal]
    recall = EventResume(known)
    first = known[0].event
    assert recall.overdue(STATION, first.onset_ns + 7200 * NS) == []
    assert recall.go_on(first) == replace(first, recorded_s=(first.recorded_s or 0) + (known[-1].event.recorded_s or 0))


def test_the_journal_gives_back_what_was_written() -> None:
    runs = Runs()
    runs.run(3 * 320)
    for record in runs.journal:
        assert encode(decode(record).event, cut=False) == record
    with pytest.raises(DataError, match="not a remembered event"):
        decode(b'{"event": {}}')
    event = decode(runs.journal[0]).event
    assert decode(encode(event, cut=True)) == JournalEntry(event, cut=True)


def test_a_station_that_falls_silent_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own last packets wait for what may follow them, and not for ever; the others' are done with as they come."""
    line = build_line(ALERTING, ClassifierConfig(backends=("constant",)), "talus/v1")
    taken: list[SampleBlock] = []
    holdback = PendingPackets(line.pipeline, taken.append)
    silent = replace(packets()[0], stream=StreamId(replace(STATION, station="GONE"), "Z"))
    for block in (silent, *packets()[:1500]):
        line.pipeline.feed(block)
        holdback.add(block)
        holdback.release()
    assert taken
    assert all(block.stream.station == STATION for block in taken)
    monkeypatch.setattr("agent.detect.resume.MAX_HELD_S", 0.0)
    monkeypatch.setattr("agent.detect.resume.SWEEP_S", 0.0)
    holdback.release()
    assert silent.stream in {block.stream for block in taken}
    assert len(holdback) == 0


def test_an_alarm_on_the_rate_goes_on_after_a_restart() -> None:
    """Raised in one run, taken back in the next: what was counted, and what stands, is known there."""
    hour = 3600.0
    times = [k * hour for k in range(48)] + [48 * hour + 300 * k for k in range(24)] + [52 * hour, 54 * hour]

    def alerts(begins: Sequence[float]) -> list[tuple[str, str]]:
        journal: list[bytes] = []
        found = []
        for begin, end in itertools.pairwise([*begins, 1e9]):
            reporter = Reporter(Policy(PolicyConfig(rules=rules())), "talus/v1", 3600)
            reporter.resume([decode(record) for record in journal])
            for at_s in times:
                if begin <= at_s < end:
                    event = replace(ended(at_s, recorded_s=at_s - begin), revision=0)
                    for message in reporter.report(event, 0):
                        journal += [message.journal] if message.journal else []
                        body = json.loads(message.payload)
                        if message.topic.endswith("/alert") and body["rate"]:
                            found.append((body["action"], body["id"]))
        return found

    whole = alerts([0])
    assert [action for action, _ in whole] == ["raise", "retract"]
    assert alerts([0, 20 * hour, 49.5 * hour, 51 * hour]) == whole
