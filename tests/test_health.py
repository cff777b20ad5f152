"""What the health report says: of the machine, of each channel and stage, of the rates of events."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from broker_support import STATION, make_alert, make_event, make_other

from agent.config.file import ClassifierConfig, TunablesConfig
from agent.config.station import TriggerConfig
from agent.detect.pipeline import MAX_STATIONS
from agent.dsp.hearing import Slot
from agent.dsp.measure import MINUTE_NS, Minute
from agent.errors import DataError, DeliveryError
from agent.health.report import MAX_STREAMS, Health, HealthInputs, Identity, Rates, for_the_broker, rsam_health
from agent.host import machine
from agent.messages.schema import HealthMessage, StageHealth
from agent.reasons import CODES, Code, Reason
from agent.service import storing
from agent.service.assemble import Line, build_line
from agent.service.threads import Runner
from agent.types import NS, BlockQuality, Discard, Event, SampleBlock, StationId, StreamId

BOOT = "0123456789abcdef"
T0 = 1_700_000_000 * NS


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_temperatures_are_named_and_a_dead_sensor_is_left_out(tmp_path: Path) -> None:
    for number, (name, value) in enumerate([("cpu-thermal", "48250"), ("tj-thermal", "51000"), ("gpu-thermal", "")]):
        put(tmp_path / f"thermal_zone{number}" / "type", f"{name}\n")
        put(tmp_path / f"thermal_zone{number}" / "temp", f"{value}\n")
    put(tmp_path / "thermal_zone7" / "type", "cpu-thermal\n")
    put(tmp_path / "thermal_zone7" / "temp", "47000\n")
    put(tmp_path / "cooling_device0" / "type", "fan\n")
    assert machine.temperatures_c(tmp_path) == {"cpu-thermal": 48.2, "tj-thermal": 51.0}
    assert machine.temperatures_c(tmp_path / "none") == {}


def test_the_rails_of_a_jetson(tmp_path: Path) -> None:
    """As the ina3221 driver lays them out; other monitors are not for us, and a channel without a load says so."""
    put(tmp_path / "hwmon1" / "name", "ina3221\n")
    for channel, label, millivolts, milliamperes in ((1, "VDD_IN", 5016, 824), (2, "VDD_CPU_GPU_CV", 5008, 0)):
        put(tmp_path / "hwmon1" / f"in{channel}_label", f"{label}\n")
        put(tmp_path / "hwmon1" / f"in{channel}_input", f"{millivolts}\n")
        put(tmp_path / "hwmon1" / f"curr{channel}_input", f"{milliamperes}\n")
    put(tmp_path / "hwmon1" / "in3_label", "VDD_SOC\n")
    put(tmp_path / "hwmon0" / "name", "nvme\n")
    put(tmp_path / "hwmon0" / "in1_label", "x\n")
    assert machine.power_w(tmp_path) == {"VDD_IN": 4.133, "VDD_CPU_GPU_CV": 0.0}
    assert machine.power_w(tmp_path / "none") == {}


def test_memory_and_disk_of_this_machine(tmp_path: Path) -> None:
    memory = machine.memory_mb()
    assert memory is not None
    assert 0 < memory[0] <= memory[1]
    rss = machine.rss_mb()
    assert rss is not None
    assert 10 < rss < memory[1]
    assert machine.disk_free_mb(tmp_path)
    put(tmp_path / "meminfo", "MemTotal:       8000 kB\nMemAvailable:   4000 kB\nHugePages_Total:       0\n")
    assert machine.memory_mb(tmp_path) == (4.1, 8.2)
    put(tmp_path / "meminfo", "nonsense\n")
    assert machine.memory_mb(tmp_path) is None
    assert machine.disk_free_mb(tmp_path / "none") is None


def block(start_ns: int, samples: np.ndarray, component: str = "Z") -> SampleBlock:
    return SampleBlock(StreamId(STATION, component), start_ns, 100.0, samples)


def hear(line: Line, health: Health, packet: SampleBlock, received_ns: int) -> None:
    before = line.pipeline.used(packet.stream)
    line.pipeline.feed(packet)
    health.saw(packet, received_ns, used=line.pipeline.used(packet.stream) > before)


def test_a_component_that_the_trigger_leaves_out_is_named(tmp_path: Path) -> None:
    """Its clock is an hour behind; that packets of a component are one after the other for a moment is no fault."""
    line, clock = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:noise",)), "talus/v1"), [0.0]
    health = Health(Identity(STATION, BOOT), tmp_path, clock=lambda: clock[0])
    chance = np.random.default_rng(1)

    def named(seconds: int, behind_s: int) -> list[str | None]:
        for _ in range(seconds):
            clock[0] += 1
            for letter in "ENZ":
                start_ns = T0 + round(clock[0] - (behind_s if letter == "N" else 0)) * NS
                hear(line, health, block(start_ns, chance.normal(0, 200, 100).astype(np.int32), letter), start_ns)
            report = health.message(1, HealthInputs(stations=tuple(line.pipeline.stations.values())))
        return [reason.about for reason in report.reasons if reason.code == "component_late"]

    assert named(100, 0) == []
    assert named(50, 30) == []
    assert named(100, 3600) == [str(StreamId(STATION, "N"))]
    assert named(5, 0) == []


@pytest.mark.parametrize(("age_s", "named"), [(600, ["XX.A.00.HH (E, N)", "XX.B.00.HH (Z)"]), (2 * 86_400, [])])
def test_what_the_run_before_heard_and_this_one_does_not_is_named(tmp_path: Path, age_s: int, named: list[str]) -> None:
    """Nobody knows of a cable that broke during the restart, unless the station remembers what came."""
    clock, slot = [0.0], Slot(round(time.time()) - age_s, 300.0, {"E": 80.0, "N": 80.0, "Z": 80.0}, (1.0, 20.0, 4))
    health = Health(Identity(STATION, BOOT), tmp_path, clock=lambda: clock[0])
    other = StationId("XX", "B", "00", "HH")
    health.expect({StationId("XX", "A", "00", "HH"): [slot], other: [dataclasses.replace(slot, levels={"Z": 80.0})]})

    def told() -> list[str]:
        found = [
            reason.text for reason in health.message(1, HealthInputs()).reasons if reason.code == "channels_silent"
        ]
        return [text.removeprefix("no samples from ").partition(" since")[0] for text in found]

    def heard(sensor: StationId, letters: str) -> None:
        for letter in letters:
            health.saw(SampleBlock(StreamId(sensor, letter), T0, 100.0, np.zeros(1, np.int32)), T0, used=True)

    heard(StationId("XX", "A", "00", "HH"), "Z")
    assert told() == []
    clock[0] = 61.0
    heard(StationId("XX", "A", "00", "HH"), "Z")
    assert told() == named
    heard(StationId("XX", "A", "00", "HH"), "12")
    heard(other, "Z")
    assert told() == []


def test_a_report_of_a_line_that_ran(tmp_path: Path) -> None:
    """Gaps, copies, late packets and broken samples are counted by channel; RSAM is there; it passes its own schema."""
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:noise",)), "talus/v1")
    health = Health(Identity(STATION, BOOT), tmp_path)
    noise = np.random.default_rng(1).normal(0, 100, 100).astype(np.float32)
    packets = [block(T0 + k * NS, noise) for k in range(200) if k not in (50, 51)]
    packets.insert(120, packets[100])
    packets.insert(130, block(T0 + 50 * NS, noise))
    packets.append(block(T0 + 200 * NS, np.where(np.arange(100) < 7, np.nan, noise).astype(np.float32)))
    received_ns = 0
    for packet in packets:
        received_ns = max(received_ns, packet.end_ns + NS // 2)  # what is late comes when it comes
        hear(line, health, packet, received_ns)
    stages = [StageHealth(name="source", alive=False, idle_s=0.2, waiting=None)]
    inputs = HealthInputs(stages=stages, source={"received": 7}, stations=tuple(line.pipeline.stations.values()))
    body = HealthMessage.model_validate_json(health.message(3, inputs).model_dump_json())
    (stream,) = body.streams
    assert (stream.gaps, stream.gap_s) == (1, 2.0)
    assert (stream.duplicates, stream.late, stream.invalid_samples) == (1, 1, 7)
    assert stream.latency_s == 0.5
    (rsam,) = body.rsam
    assert rsam.station == str(STATION)
    assert 0 < rsam.counts < 100
    assert (body.reasons[0].code, body.reasons[0].text) == ("stage_ended", "the source has ended")
    assert body.reasons[0].about == "source"
    assert body.status == "degraded"
    assert body.source == {"received": 7}
    assert body.memory_total_mb


def test_of_many_channels_the_broker_hears_of_the_worst(tmp_path: Path) -> None:
    """64 stations of three: the report has all, the message those that are ill, and it says how many there are."""
    now = [1000.0]
    health = Health(Identity(STATION, BOOT), tmp_path, clock=lambda: now[0])
    streams = [StreamId(StationId("XX", f"S{k:02d}", "", "HH"), c) for k in range(64) for c in "ENZ"]
    dead, doubted, slow = streams[100:107], streams[180], streams[190]
    for stream in streams:
        quality = BlockQuality(time_questionable=stream == doubted)
        packet = SampleBlock(stream, T0, 100.0, np.ones(100, np.int32), quality)
        health.saw(packet, packet.end_ns + (9 * NS if stream == slow else NS // 2), used=True)
        if stream == dead[-1]:
            now[0] += 100
    for stream in streams[:100]:
        health.saw(SampleBlock(stream, T0 + NS, 100.0, np.ones(100, np.int32)), T0 + 2 * NS, used=True)
    report = health.message(1, HealthInputs())
    assert [one.stream for one in report.streams] == sorted(str(stream) for stream in streams)
    sent = for_the_broker(report)
    assert {one.stream for one in sent.streams[:7]} == {str(stream) for stream in dead}
    assert [one.stream for one in sent.streams[7:9]] == [str(doubted), str(slow)]
    assert (len(sent.streams), sent.streams_total, sent.streams_stalled) == (MAX_STREAMS, 192, 7)
    (reason,) = sent.reasons
    assert reason.text == f"no new samples from {', '.join(map(str, dead[:5]))} and 2 more for 60 s"
    assert len(sent.model_dump_json()) < 32_768


def test_a_report_is_shortened_to_what_the_broker_takes_and_keeps_its_reasons(tmp_path: Path) -> None:
    health = Health(Identity(STATION, BOOT), tmp_path)
    for number in range(64):
        stream = StreamId(StationId("XX", f"S{number:02d}", "", "HH"), "Z")
        health.saw(SampleBlock(stream, T0, 100.0, np.ones(100, np.int32)), T0 + NS, used=True)
    report = health.message(1, HealthInputs(problems=[Reason("packet_limit", "the broker takes little")]))
    assert for_the_broker(report, 100_000) == report
    short = for_the_broker(report, 4_000)
    assert len(short.model_dump_json()) <= 4_000
    assert (short.reasons, short.streams_total) == (report.reasons, 64)


def test_a_channel_whose_clock_was_set_back_is_not_well_while_nothing_of_it_is_new(tmp_path: Path) -> None:
    """Packets come every second, all pass for copies of what is known, and the station is blind."""
    now = [1000.0]
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:noise",)), "talus/v1")
    health = Health(Identity(STATION, BOOT), tmp_path, clock=lambda: now[0])
    status = []
    for second in (*range(300), *range(100, 400)):
        hear(line, health, block(T0 + second * NS, np.ones(100, np.int32)), T0 + 400 * NS)
        now[0] += 1
        status.append(health.message(1, HealthInputs()).status)
    assert status == ["ok"] * 359 + ["degraded"] * 141 + ["ok"] * 100


class Given:
    """A source that gives packets, and then nothing more."""

    def __init__(self, packets: Sequence[SampleBlock]) -> None:
        self._packets = packets

    def blocks(self) -> Iterator[SampleBlock]:
        yield from self._packets

    def close(self) -> None:
        pass


def test_a_start_without_samples_is_no_fault_for_a_minute(tmp_path: Path) -> None:
    now = [0.0]
    health = Health(Identity(STATION, BOOT), tmp_path, clock=lambda: now[0])
    report = health.message(1, HealthInputs())
    assert (report.status, [reason.code for reason in report.reasons]) == ("starting", ["no_samples"])
    now[0] = 61.0
    report = health.message(1, HealthInputs())
    assert (report.status, [reason.code for reason in report.reasons]) == ("degraded", ["no_samples"])


def test_a_sensor_without_a_component_is_named(tmp_path: Path) -> None:
    """An infrasound channel beside a geophone is no sensor of its own; alone it is a station that hears nothing."""
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:noise",)), "talus/v1")
    health = Health(Identity(STATION, BOOT), tmp_path)
    pressure = dataclasses.replace(
        block(T0, np.ones(100, np.int32)), stream=StreamId(dataclasses.replace(STATION, band_source="HD"), "F")
    )
    hear(line, health, pressure, T0 + NS)
    report = health.message(1, HealthInputs(stations=tuple(line.pipeline.stations.values())))
    assert [reason.code for reason in report.reasons] == ["no_component"]
    hear(line, health, block(T0, np.ones(100, np.int32)), T0 + NS)
    report = health.message(1, HealthInputs(stations=tuple(line.pipeline.stations.values())))
    assert (report.status, [reason.code for reason in report.reasons]) == ("starting", ["listening"])
    assert [one.station for one in report.hearing] == [str(STATION)]


def test_packets_that_the_pipeline_refuses_are_told_of(tmp_path: Path) -> None:
    """Not only in the log: the trigger looks above what this station records, which is thereby blind."""
    trigger = TriggerConfig(low_hz=45.0, high_hz=48.0)
    line = build_line(TunablesConfig(trigger=trigger), ClassifierConfig(backends=("constant:noise",)), "talus/v1")
    source = Given([block(T0 + k * NS, np.ones(100, np.int32)) for k in range(3)])
    runner = Runner(source, line, Health(Identity(STATION, BOOT), tmp_path), lambda _: None)
    runner.start()
    assert runner.ended.wait(60)
    assert runner.counters()["refused_packets"] == 3
    (trouble,) = runner.problems()
    assert trouble.code == "packets_refused"
    assert "are dropped" in trouble.text
    assert "too few for the trigger" in trouble.text


def test_more_reasons_than_a_message_holds_are_counted(tmp_path: Path) -> None:
    health = Health(Identity(STATION, BOOT), tmp_path)
    problems = [Reason("source", f"problem {k} " + 600 * "x", 100 * "y") for k in range(30)]
    reasons = health.message(1, HealthInputs(problems=problems)).reasons
    assert (len(reasons), reasons[0].text[:10], reasons[-1].text) == (20, "problem 0 ", "and 12 more")
    assert (reasons[0].code, reasons[-1].code) == ("source", "more")


def test_discards_are_counted_by_their_code_whatever_their_words(tmp_path: Path) -> None:
    health = Health(Identity(STATION, BOOT), tmp_path)
    health.decided(Discard(STATION, T0, "too_short", "the trigger lasted 0.21 s, less than min_duration_s"))
    health.decided(Discard(STATION, T0, "too_short", "another wording"))
    health.decided(Discard(STATION, T0, "too_many_open", "8 events are open, at this station, already"))
    assert health.message(1, HealthInputs()).discards_hour == {"too_short": 2, "too_many_open": 1}


def test_a_network_that_fails_is_a_reason_for_an_hour(tmp_path: Path) -> None:
    """Without a label nothing alerts, unless the policy says so: the count alone would be overlooked."""
    now = [1000.0]
    health = Health(Identity(STATION, BOOT), tmp_path, clock=lambda: now[0])
    health.decided(dataclasses.replace(make_event(), classification=None, reason="the runtime is out of memory"))
    (reason,) = [one for one in health.message(1, HealthInputs()).reasons if one.code == "no_verdict"]
    assert "failed once" in reason.text
    assert "out of memory" in reason.text
    now[0] += 3601
    assert "no_verdict" not in {one.code for one in health.message(1, HealthInputs()).reasons}


def test_messages_that_found_room_nowhere_are_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "HELD_MESSAGES", 5)

    def refuse(_: object) -> None:
        raise DeliveryError("the disk is full")

    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:noise",)), "talus/v1")
    runner = Runner(Given([]), line, Health(Identity(STATION, BOOT), tmp_path), refuse)
    runner._send([make_other(n) for n in range(5)])
    assert {one.code for one in runner.problems()} == {"disk_refuses"}
    runner._send([make_alert(n) for n in range(7)])
    (lost,) = [one for one in runner.problems() if one.code == "messages_lost"]
    assert lost.text.endswith("and memory was full: 2")


def test_messages_that_are_being_stored_are_not_refused_by_the_disk(tmp_path: Path) -> None:
    """The monitor may look while a packet's messages are on their way to the disk."""
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:noise",)), "talus/v1")
    seen: list[Reason] = []
    runner = Runner(
        Given([]), line, Health(Identity(STATION, BOOT), tmp_path), lambda _: seen.extend(runner.problems())
    )
    runner._send([make_alert(1)])
    assert seen == []


def test_every_reason_has_a_code_a_meaning_and_a_row_in_the_manual() -> None:
    """Programs rely on the codes; the operator looks them up."""
    assert set(CODES) == set(get_args(Code))
    manual = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    assert [code for code in CODES if f"`{code}`" not in manual] == []


def test_sensors_beyond_all_bounds_are_refused() -> None:
    """A header that is damaged again and again names a new sensor each time; memory stays bounded, the others go on."""
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:noise",)), "talus/v1")
    first = block(T0, np.ones(100, np.int32))
    line.pipeline.feed(first)
    for k in range(1, MAX_STATIONS + 1):
        other = dataclasses.replace(first, stream=StreamId(StationId("XX", f"S{k}", "", "HH"), "Z"))
        if k < MAX_STATIONS:
            line.pipeline.feed(other)
        else:
            with pytest.raises(DataError, match="256 sensors already"):
                line.pipeline.feed(other)
    line.pipeline.feed(block(T0 + NS, np.ones(100, np.int32)))


def test_a_stage_that_hangs_is_told_from_one_with_nothing_to_do(tmp_path: Path) -> None:
    health = Health(Identity(STATION, BOOT), tmp_path)
    health.saw(block(T0, np.ones(100, np.int32)), T0, used=True)
    stages = [StageHealth(name="pipeline", alive=True, idle_s=40.0, waiting=0)]
    assert health.message(1, HealthInputs(stages=stages)).reasons == []
    stages = [StageHealth(name="pipeline", alive=True, idle_s=40.0, waiting=17)]
    (reason,) = health.message(1, HealthInputs(stages=stages)).reasons
    assert (reason.code, reason.about) == ("stage_stuck", "pipeline")
    assert reason.text == "the pipeline has done nothing for 40 s, and 17 packets wait"


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("memory_mb", lambda: (40.0, 8000.0), "memory_low: 40 MB of memory are left"),
        ("disk_free_mb", lambda folder: 12.0, "disk_low: 12 MB of disk are left"),
        ("files_free", lambda folder: 7, "disk_low: only 7 more files fit on the disk"),
        ("temperatures_c", lambda: {"tj-thermal": 99.5, "cpu-thermal": 60.0}, "hot: tj-thermal is at 100 °C"),
    ],
)
def test_a_machine_in_trouble_is_degraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: str, value: object, reason: str
) -> None:
    health = Health(Identity(STATION, BOOT), tmp_path)
    health.saw(block(T0, np.ones(100, np.int32)), T0, used=True)
    assert health.message(1, HealthInputs()).status == "ok"
    monkeypatch.setattr(machine, attribute, value)
    (found,) = health.message(1, HealthInputs()).reasons
    assert f"{found.code}: {found.text}".startswith(reason)


def test_events_that_have_not_ended_count_too(tmp_path: Path) -> None:
    """Two minutes of a large slide are not `none`; an event counts once, under its newest label."""
    health = Health(Identity(STATION, BOOT), tmp_path)
    for phase in ("new", "update"):
        health.decided(make_event(phase=phase))
    said = health.message(1, HealthInputs())
    assert (said.events_hour, said.events_open, said.events_total) == ({"landslide": 1}, 1, {})
    health.decided(make_event(phase="end"))
    said = health.message(2, HealthInputs())
    assert (said.events_hour, said.events_open, said.events_total) == ({"landslide": 1}, 0, {"landslide": 1})


def test_an_event_on_which_the_network_abstains_counts_as_undecided(tmp_path: Path) -> None:
    health = Health(Identity(STATION, BOOT), tmp_path)
    made = make_event(phase="end")
    assert made.classification is not None
    verdict = dataclasses.replace(made.classification, abstained=True)
    health.decided(dataclasses.replace(made, classification=verdict))
    assert health.message(1, HealthInputs()).events_hour == {"undecided": 1}


def test_a_station_as_a_whole_has_no_trailing_dots() -> None:
    assert str(StationId("XX", "SLOPE", "", "")) == "XX.SLOPE"
    assert str(StationId("XX", "SLOPE", "", "HH")) == "XX.SLOPE..HH"


def ended(age_s: float, label: str = "landslide") -> Event:
    made = make_event(phase="end")
    assert made.classification is not None
    verdict = dataclasses.replace(made.classification, label=label)
    return dataclasses.replace(made, onset_ns=T0 - round(age_s * NS), classification=verdict)


def test_rates_are_of_the_last_hour_and_day_of_data() -> None:
    rates = Rates()
    for age_s in (90_000, 80_000, 7200, 3599, 10, 0):
        rates.add(ended(age_s))
    rates.add(dataclasses.replace(ended(7200), classification=None, reason="it failed"))
    landslide, failed = rates.report({STATION: T0})
    assert (landslide.label, landslide.per_hour, landslide.per_day) == ("landslide", 3.0, 5.0)
    assert landslide.inverse_rate_h == pytest.approx(1 / 3, abs=1e-4)
    assert (failed.label, failed.per_hour, failed.inverse_rate_h) == ("unclassified", 0.0, None)
    (late,) = rates.report({STATION: T0 + 80_000 * NS})
    assert late.per_day == 3.0


def test_rates_cost_little_when_there_are_many() -> None:
    rates = Rates()
    event = ended(100)
    for _ in range(100_000):
        rates.add(event)
    began = time.process_time()
    (rate,) = rates.report({STATION: T0})
    assert rate.per_hour == 100_000
    assert time.process_time() - began < 5.0, "it is done every ten seconds, with the pipeline waiting"


def test_rsam_of_the_hour_weighs_minutes_by_what_was_recorded() -> None:
    minutes = tuple(Minute(k * MINUTE_NS, value, share) for k, value, share in
                    ((0, 1000.0, 1.0), (61, 10.0, 1.0), (62, 40.0, 0.5)))  # fmt: skip
    found = rsam_health(STATION, minutes)
    assert found is not None
    assert (found.counts, found.coverage, found.hour_counts) == (40.0, 0.5, 20.0)
    assert rsam_health(STATION, ()) is None
