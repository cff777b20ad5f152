"""What is kept of an event is what was recorded, sample by sample, and never fills the disk."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from broker_support import make_event, wait_for
from obspy import read
from pymseed import MS3TraceList

from agent.alert import evidence
from agent.alert.evidence import AlertRecords, EvidenceStore, encode
from agent.alert.policy import Policy
from agent.alert.reporter import Reporter
from agent.config.policy import PolicyConfig, RulesConfig
from agent.messages.payloads import MAX_EVIDENCE, Message
from agent.types import NS, Coincidence, Evidence, Segment, StationId, StreamId, Vote

RULE = {"severity": "minor", "min_probability": 0.5, "refractory_s": 0, "min_window_s": 0, "min_duration_s": 0}
RULE |= {"confirm": {"k": 1, "n": 1}}
START = 1_700_000_000 * NS
Z, N = StreamId.parse("XX.SLOPE.00.HHZ"), StreamId.parse("XX.SLOPE.00.HHN")


def run(samples: np.ndarray, start_ns: int = START, rate_hz: float = 100.0) -> Segment:
    return Segment(start_ns, rate_hz, samples)


@pytest.mark.parametrize("kind", ["noise", "steps", "constant", "float", "one sample"])
def test_samples_times_and_names_come_back(kind: str) -> None:
    rng = np.random.default_rng(1)
    samples = {
        "noise": rng.integers(-5000, 5000, 3000).astype(np.int32),
        "steps": rng.choice([-(2**31), 2**31 - 1], 3000).astype(np.int32),
        "constant": np.zeros(3000, np.int32),
        "float": rng.standard_normal(3000).astype(np.float32),
        "one sample": np.array([7], np.int32),
    }[kind]
    (trace,) = read(io.BytesIO(encode({Z: [run(samples, rate_hz=250.0)]})))
    assert trace.id == "XX.SLOPE.00.HHZ" and trace.stats.sampling_rate == 250.0
    assert trace.stats.starttime.ns == START
    np.testing.assert_array_equal(trace.data, samples)


def test_a_gap_stays_a_gap_and_no_channel_is_lost(tmp_path: Path) -> None:
    ones = np.ones(500, np.int32)
    store = EvidenceStore(tmp_path / "evidence", 10)
    kept = store.keep("XX.SLOPE-20231114T221320000", {Z: [run(ones), run(ones, START + 20 * NS)], N: [run(ones)]})
    raw = store.read("XX.SLOPE-20231114T221320000")
    assert kept is not None and raw is not None
    assert (kept.sha256, kept.size) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert (kept.start_ns, kept.end_ns) == (START, START + 25 * NS)
    stream = read(io.BytesIO(raw))
    assert sorted((t.id, len(t)) for t in stream) == [("XX.SLOPE.00.HHN", 500), *[("XX.SLOPE.00.HHZ", 500)] * 2]


@pytest.mark.parametrize(
    "name", ["XX.CHAOS01.00.HHZ", "FDSN:TALUSNET_SLOPE-12_LOC-0001_H_H_Z", "FDSN:XX_ABC_00_HH_HH_ZZ"]
)
def test_names_too_long_for_miniseed_2_are_kept_in_miniseed_3(tmp_path: Path, name: str) -> None:
    """Codes may have eight characters; an event of such a station has a record too, and is no reason to die."""
    stream, ones = StreamId.parse(name), np.arange(500, dtype=np.int32)
    assert EvidenceStore(tmp_path, 10).keep("E", {stream: [run(ones)]}) is not None
    raw = (tmp_path / "E.mseed").read_bytes()
    traces = MS3TraceList.from_buffer(raw, unpack_data=True)
    assert traces[0].sourceid == str(stream)
    np.testing.assert_array_equal(traces[0][0].np_datasamples, ones)


def test_what_the_format_refuses_is_logged_and_the_event_goes_out(tmp_path: Path) -> None:
    strange = StreamId(StationId("X" * 200, "SLOPE", "00", "HH"), "Z")
    assert EvidenceStore(tmp_path, 10).keep("E", {strange: [run(np.ones(10, np.int32))]}) is None


def test_the_oldest_make_room(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path, 0.05)
    data = {Z: [run(np.random.default_rng(0).integers(-9999, 9999, 5000).astype(np.int32))]}
    for number in range(12):
        assert store.keep(f"E-{number}", data)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 0.05 * 2**20
    assert store.read("E-11") is not None and store.read("E-0") is None


def test_nothing_to_keep_and_nowhere_to_keep_it(tmp_path: Path) -> None:
    assert EvidenceStore(tmp_path, 1).keep("E", {Z: []}) is None
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = EvidenceStore(blocked / "folder", 1)
    assert store.keep("E", {Z: [run(np.ones(5, np.int32))]}) is None
    assert [reason.code for reason in store.reasons()] == ["records_not_kept"]
    blocked.unlink()
    assert store.keep("E", {Z: [run(np.ones(5, np.int32))]}) is not None
    assert store.reasons() == []


def test_a_disk_that_hangs_with_a_record_stops_no_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is written first is a pipe that nobody reads yet: opening it waits."""
    monkeypatch.setattr(evidence, "WAIT_S", 0.2)
    monkeypatch.setattr(evidence, "HANGS_S", 0.1)
    store, samples = EvidenceStore(tmp_path, 10), {Z: [run(np.arange(500, dtype=np.int32))]}
    pipe = tmp_path / ".E.mseed.new"
    os.mkfifo(pipe)
    kept = store.keep("E", samples)
    raw = store.read("E")
    assert kept is not None and raw is not None
    assert hashlib.sha256(raw).hexdigest() == kept.sha256, "it is in memory until it is on disk"
    for number in range(evidence.MOST_UNWRITTEN - 1):
        assert store.keep(f"F{number}", samples) is not None
    assert store.keep("G", samples) is None, "memory is bounded"
    [reason] = store.reasons()
    assert (reason.code, "not written in" in reason.text) == ("records_not_kept", True)
    with pipe.open("rb") as disk:
        assert disk.read() == raw
    wait_for((tmp_path / f"F{evidence.MOST_UNWRITTEN - 2}.mseed").exists)
    wait_for(lambda: store.reasons() == [])


@pytest.mark.parametrize("name", ["../secret", "a/b", "", "x" * 81, "..\\x", "E\n"])
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.mseed").write_bytes(b"secret")
    assert EvidenceStore(tmp_path / "evidence", 1).read(name) is None


def names(messages: list[Message]) -> list[str]:
    return [message.topic.removeprefix("talus/v1/XX/SITE/evidence/") for message in messages]


def test_the_record_of_an_alert_is_sent_once_whichever_of_them_comes_first() -> None:
    records = {make_event(number).id: bytes(40_000) for number in range(3)}
    sender = AlertRecords(records.get, StationId("XX", "SITE", "", ""), "talus/v1")
    first, second, quiet = (make_event(number, 3, "end") for number in range(3))
    place = first.id.replace(".", "_")
    assert names(sender.alerted(first)) == []
    assert names(sender.kept(first)) == [f"{place}/0", f"{place}/1"]
    assert names(sender.kept(first) + sender.alerted(first)) == []
    assert names(sender.kept(second)) == []
    assert len(sender.alerted(second)) == 2
    assert sender.kept(quiet) == []


def test_an_alert_of_the_site_sends_the_records_of_its_members() -> None:
    members = [make_event(number, 3, "end") for number in (1, 2)]
    votes = tuple(Vote(e.station, e.id, e.revision, e.phase, e.onset_ns, 1.0, e.classification) for e in members)
    site = dataclasses.replace(make_event(0), coincidence=Coincidence(2, 2, 10.0, votes, None))
    sender = AlertRecords(lambda _: b"record", StationId("XX", "SITE", "", ""), "talus/v1")
    assert sender.kept(members[0]) == []
    sent = sender.alerted(site) + sender.kept(members[1])
    assert names(sent) == [f"{member.id.replace('.', '_')}/0" for member in members]


def test_what_is_too_large_is_not_sent_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    sender = AlertRecords(lambda _: bytes(MAX_EVIDENCE + 1), StationId("XX", "SITE", "", ""), "talus/v1")
    event = make_event(0, 3, "end")
    assert sender.alerted(event) + sender.kept(event) == []
    assert "is not sent" in caplog.text


def test_a_station_that_is_to_sends_the_record_behind_the_last_message_of_the_event() -> None:
    reporter = Reporter(Policy(PolicyConfig(rules=RulesConfig.model_validate({"landslide": RULE}))), "talus/v1", 3600)
    reporter.resume([])
    reporter.keep = lambda event: Evidence("ab" * 32, 6, event.onset_ns, event.onset_ns)
    reporter.records = AlertRecords(lambda _: b"record", StationId("XX", "SITE", "", ""), "talus/v1")
    first = reporter.report(make_event(0, 0), 0)
    last = reporter.report(make_event(0, 1, "end"), 0)
    again = reporter.report(make_event(1, 0, "end", probability=0.3), 0)
    assert [message.name for message in first] == ["alert", "event", "last_alert", "last_event"]
    assert [message.topic.split("/")[4] for message in last] == ["event", "last_event", "evidence"]
    assert "evidence" not in [message.topic.split("/")[4] for message in again]
    cut = reporter.report(make_event(2, 0), 0) + reporter.report(make_event(2, 1, "end"), 0, cut=True)
    assert "evidence" not in [message.topic.split("/")[4] for message in cut], "the next run goes on with it"
