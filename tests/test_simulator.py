"""The synthetic site: reproducible, in order, with faults as told; and drills that can never look real."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from broker_support import Collector, needs_mosquitto, running, wait_for
from records_support import NOON, seconds

from agent.cli import main
from agent.config.file import ClassifierConfig, TunablesConfig, load
from agent.dsp.continuity import Continuity
from agent.service.assemble import build_line, is_exercise, open_source
from agent.sources.simulator import (
    CELL_S,
    KINDS,
    LIMIT,
    QUIET_S,
    Fault,
    Planned,
    Scenario,
    Sent,
    SentFault,
    SimulatedSite,
    SimulatorSource,
    crisis,
    failure,
    rockfalls,
    station_ids,
    steady,
)
from agent.sources.synthesis import MOTIONS, Kind, Noise, events, motion
from agent.types import NS, Event, SampleBlock

BUSY: Mapping[str, float] = {"slopequake": 120, "rockfall": 40, "blast": 20, "earthquake": 20}


def play(
    length_s: float = 300.0, *, seed: int = 1, stations: int = 1, packet_s: float = 1.0, rate_hz: float = 100.0,
    per_hour: Mapping[str, float] = BUSY,
) -> tuple[list[SampleBlock], list[Sent | SentFault]]:  # fmt: skip
    told: list[Sent | SentFault] = []
    source = SimulatorSource(
        SimulatedSite(station_ids("XX", "SIM", stations, rate_hz), rate_hz, packet_s=packet_s),
        Scenario(seed, steady(per_hour), stations), seed,
        start_ns=NOON, seconds=length_s, speed=0, told=told.append,
    )  # fmt: skip
    return list(source.blocks()), told


def whole(blocks: list[SampleBlock]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for block in blocks:
        found.setdefault(block.stream.seed, []).extend(block.samples.tolist())
    return found


def test_the_same_seed_gives_the_same_site_however_it_is_cut() -> None:
    """Samples depend on seed and place alone: not on the length of packets nor on how many stations there are."""
    blocks, told = play()
    again, told_again = play(packet_s=7.3)
    assert whole(blocks) == whole(again)
    assert told == told_again
    more = whole(play(stations=3)[0])
    assert more["XX.SIM01..HHZ"] == whole(blocks)["XX.SIM..HHZ"]
    assert more["XX.SIM02..HHZ"] != more["XX.SIM01..HHZ"]
    assert whole(play(seed=2)[0]) != whole(blocks)


@pytest.mark.parametrize("rate_hz", [20.0, 50.0, 100.0, 250.0, 1000.0])
def test_packets_are_in_order_without_gaps_at_every_rate(rate_hz: float) -> None:
    blocks, _ = play(90.0, rate_hz=rate_hz)
    assert {len(values) for values in whole(blocks).values()} == {round(90 * rate_hz)}
    assert [b.start_ns for b in blocks] == sorted(b.start_ns for b in blocks)
    continuity = Continuity()
    for block in blocks:
        continuity.accept(block)
    assert all(c.gaps == c.overlaps == c.duplicates == 0 for c in continuity.counts.values())


def test_noise_has_the_stated_strength_everywhere() -> None:
    """Pieces overlap so that no seam is louder or quieter than the rest."""
    noise = [Noise(1, channel, 100.0, 100.0).samples(0, 200_000) for channel in range(6)]
    power = np.mean([n**2 for n in noise], axis=0).reshape(-1, 500).mean(axis=1)
    assert np.sqrt(power.mean()) == pytest.approx(100, rel=0.05)
    by_phase = power[: len(power) // 8 * 8].reshape(-1, 8).mean(axis=0)
    assert by_phase.max() / by_phase.min() < 1.3


@pytest.mark.parametrize("kind", KINDS)
def test_signals_look_like_their_kind(kind: Kind) -> None:
    """Peak 1, quiet at the end, energy where the kind has it; a slide rises slowly and a quake at once."""
    for seed in range(5):
        data = motion(kind, np.random.default_rng(seed), 100.0)
        assert np.abs(data).max() == 1
        assert np.abs(data[:, -20:]).max() < 0.25
        spectrum = np.abs(np.fft.rfft(data, axis=1)).sum(axis=0)
        centre = float((np.fft.rfftfreq(data.shape[1], 0.01) * spectrum).sum() / spectrum.sum())
        low, high = {"slopequake": (8, 30), "rockfall": (6, 35), "slide": (2, 20), "blast": (2, 20),
                     "earthquake": (1, 20)}[kind]  # fmt: skip
        assert low < centre < high
        rise = np.abs(data[:, :100]).max()
        if kind != "rockfall":
            assert rise < 0.4 if kind == "slide" else rise > 0.02


def test_a_drill_has_the_events_of_the_training() -> None:
    """Else the network that is drilled hears what nobody taught it. Near the site, by the same physics."""
    taught = {make for kinds in events.KINDS.values() for _, make, _ in kinds}
    for kind in KINDS:
        assert getattr(MOTIONS[kind], "func", MOTIONS[kind]) in taught


def test_slope_quakes_have_two_phases_a_few_tenths_of_a_second_apart() -> None:
    """P is strongest on the vertical, S on the horizontals and later."""
    delays = []
    for seed in range(40):
        data = motion("slopequake", np.random.default_rng(seed), 100.0) ** 2
        horizontal, vertical = data[0] + data[1], data[2]
        delays.append(
            (np.argmax(np.convolve(horizontal, np.ones(5))) - np.argmax(vertical > 0.1 * vertical.max())) / 100
        )
    assert 0.05 < float(np.median(delays)) < 0.8


def test_what_was_told_is_in_the_data() -> None:
    """From each told onset on the signal is there, and nothing happens in the first minute."""
    blocks, told = play(600.0, per_hour={"blast": 30})
    samples = np.abs(np.array([whole(blocks)[f"XX.SIM..HH{c}"] for c in "ENZ"], float)).max(axis=0)
    assert len(told) >= 3
    for sent in told:
        assert isinstance(sent, Sent)
        at = round((sent.onset_ns - NOON) / NS * 100)
        assert at >= QUIET_S * 100
        if at + sent.seconds * 100 < len(samples):
            assert samples[at : at + round(sent.seconds * 100)].max() > 0.7 * sent.peak_counts


def test_rates_are_kept() -> None:
    scenario = Scenario(5, steady({"rockfall": 60}), 1)
    cells = list(itertools.chain.from_iterable(scenario.cell(i) for i in range(1, 601)))
    assert 540 < len(cells) < 660
    assert len({what.index for what in cells if isinstance(what, Planned)}) == len(cells)


def test_a_crisis_accelerates_up_to_the_failure() -> None:
    scenario = Scenario(1, crisis(3600.0), 1, failure(3600.0))
    found = [w for i in range(60) for w in scenario.cell(i) if isinstance(w, Planned)]
    own = [w.at_s for w in found if w.kind in ("slopequake", "rockfall")]
    early, late = sum(at < 1620 for at in own), sum(1620 <= at < 3240 for at in own)
    assert late > 2 * early
    assert [w.at_s for w in found if w.kind == "slide"] == [3240.0]
    assert sum(at > 3300 for at in own) < 10


def test_rockfalls_grow_and_nothing_else_happens() -> None:
    scenario = Scenario(1, steady({}), 1, rockfalls(720.0))
    found = [w for i in range(12) for w in scenario.cell(i)]
    assert [w.kind for w in found] == ["rockfall"] * 8
    peaks = [w.peak for w in found if isinstance(w, Planned)]
    assert peaks == sorted(peaks) and peaks[0] == 10 and peaks[-1] > 600
    assert all(w.at_s >= QUIET_S for w in found)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_growing_rockfalls_end_in_an_alert_whatever_the_seed(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the demonstration: what it shows is not the luck of one seed."""
    arguments = ["simulate", "--scenario", "rockfalls", "--hours", "0.2", "--speed", "0", "--seed", str(seed)]
    assert main([*arguments, "--start", "2026-03-01T00:00:00Z"]) == 0
    said = capsys.readouterr()
    assert " ALERT raise severe  XX.SIM " in said.out
    assert "exercise" in said.err


# Faults


def fault_run(kind: str) -> tuple[list[SampleBlock], Fault, int]:
    blocks, told = play(1800.0, per_hour={kind: 8})
    faults = [one for one in told if isinstance(one, SentFault)]
    assert faults
    assert {one.fault.kind for one in faults} == {kind}
    return blocks, faults[0].fault, faults[0].time_ns


def test_a_gap_loses_packets_of_one_channel() -> None:
    blocks, fault, _ = fault_run("gap")
    lengths = {name[-1]: len(values) for name, values in whole(blocks).items()}
    assert lengths["ENZ"[fault.row]] < 180_000
    assert sum(180_000 - n for n in lengths.values()) >= fault.seconds * 100 - 200
    gap = [
        b for b in blocks if b.stream.component == "ENZ"[fault.row] and abs(b.start_ns - NOON - fault.at_s * NS) < NS
    ]
    assert gap == []


def test_a_clock_step_shifts_times_and_lowers_the_clock_s_quality() -> None:
    blocks, fault, time_ns = fault_run("clock_step")
    off = [b for b in blocks if (b.start_ns - NOON) % NS != 0]
    assert off
    assert all(b.quality.clock_locked is False and b.quality.time_questionable for b in off)
    first = off[0].start_ns - round(fault.step_s * NS)
    assert abs(first - time_ns) <= NS


def test_a_spike_is_one_sample_at_the_limit() -> None:
    blocks, _, time_ns = fault_run("spike")
    (hit, *_) = [b for b in blocks if LIMIT in b.samples]
    assert int((hit.samples == LIMIT).sum()) == 1
    assert abs(hit.start_ns + int(np.argmax(hit.samples)) * 10_000_000 - time_ns) < seconds(0.02)


def test_a_dead_channel_is_constant() -> None:
    blocks, fault, time_ns = fault_run("dead_channel")
    component = "ENZ"[fault.row]
    inside = [
        b.samples for b in blocks
        if b.stream.component == component and time_ns <= b.start_ns and b.end_ns <= time_ns + fault.seconds * NS
    ]  # fmt: skip
    assert len(inside) > 30
    assert len(np.unique(np.concatenate(inside))) == 1


def test_a_stall_delays_packets_and_loses_none() -> None:
    """The stalled station falls behind the other one, by as much as the stall lasts, and keeps its order."""
    blocks, told = play(900.0, stations=2, per_hour={"stall": 12})
    fault = next(one for one in told if isinstance(one, SentFault))
    assert {len(values) for values in whole(blocks).values()} == {90_000}
    newest, behind = 0, 0.0
    for block in blocks:
        newest = max(newest, block.start_ns)
        if block.stream.station == fault.station and abs(block.start_ns - fault.time_ns) < 2 * NS:
            behind = max(behind, (newest - block.start_ns) / NS)
    assert behind > 0.8 * fault.fault.seconds - 2
    for station in (1, 2):
        order = [b.start_ns for b in blocks if b.stream.seed == f"XX.SIM0{station}..HHZ"]
        assert order == sorted(order)


# As a source of the service


def test_at_a_speed_packets_come_when_they_are_due_and_close_ends_the_wait() -> None:
    source = SimulatorSource(
        SimulatedSite(station_ids("XX", "SIM", 1, 100.0)), Scenario(1, steady({}), 1), 1, start_ns=NOON, speed=20.0
    )
    blocks = source.blocks()
    next(blocks)
    started = time.monotonic()
    for _ in range(3 * 20 - 1):
        next(blocks)
    assert 0.8 < time.monotonic() - started < 40
    slow = SimulatorSource(
        SimulatedSite(station_ids("XX", "SIM", 1, 100.0)), Scenario(1, steady({}), 1), 1, speed=0.001
    )
    thread = threading.Thread(target=lambda: list(slow.blocks()), daemon=True)
    thread.start()
    time.sleep(0.1)
    slow.close()
    thread.join(60)
    assert not thread.is_alive()


def test_no_packet_comes_from_the_future() -> None:
    """Else a drill would show a clock that is ahead, and latencies below zero."""
    live = SimulatorSource(SimulatedSite(station_ids("XX", "SIM", 1, 100.0)), Scenario(1, steady({}), 1), 1)
    assert next(live.blocks()).end_ns <= time.time_ns() + NS // 20


def test_a_configured_simulator_is_an_exercise(tmp_path: Path) -> None:
    file = tmp_path / "drill.yaml"
    file.write_text(
        "station: {network: XX, station: DRILL}\n"
        "source: {kind: simulator, start: '2026-03-01T00:00:00Z', hours: 0.05, speed: 0, stations: 2,\n"
        "         rates: {slopequakes_per_hour: 600}, faults: {spikes_per_hour: 60}}\n"
    )
    config = load(file)
    assert is_exercise(config)
    blocks = list(open_source(config, print).blocks())
    assert {b.stream.station.short for b in blocks} == {"XX.DRILL01", "XX.DRILL02"}
    assert blocks[0].start_ns == 1_772_323_200 * NS
    assert sum(len(b.samples) for b in blocks) == 2 * 3 * 18_000
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant",)), "talus/v1", exercise=True)
    events = [e for b in blocks for e in line.pipeline.feed(b) if isinstance(e, Event)]
    assert events
    assert all(event.exercise for event in events)


# The command


def test_simulate_prints_what_was_sent_and_what_was_detected(capsys: pytest.CaptureFixture[str]) -> None:
    """Six minutes of crisis; most of a calm site's signals are found, and no event without a signal."""
    arguments = ["simulate", "--speed", "0", "--hours", "0.1", "--start", "2026-03-01T00:00:00Z"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert any("sent      XX.SIM  slide" in line for line in lines)
    assert any("detected  XX.SIM" in line for line in lines)
    table = {
        line.split()[0]: line.split()[1:] for line in lines[lines.index(next(x for x in lines if x[:4] == "kind")) :]
    }
    assert table["slide"][:2] == ["1", "1"]
    assert int(table["slopequake"][0]) >= int(table["slopequake"][1]) > 0
    assert "marked as an exercise" in err


@pytest.mark.parametrize("seed", [1, 16])
def test_the_final_slide_of_a_crisis_is_held_back_by_no_smaller_event(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rockfalls alert in the minutes before it, some of a larger peak. Whatever is called a landslide here, the slide
    alerts; and where the network does not call it one, that is what the drill says, and not that it was held back."""
    config = tmp_path / "station.yaml"
    config.write_text(
        "station: {network: XX, station: SIM}\nsource: {kind: simulator}\n"
        "classifier: {backends: ['constant:landslide']}\n"
    )
    arguments = ["simulate", "--speed", "0", "--seed", str(seed), "--start", "2026-06-01T00:00:00Z"]
    assert main([*arguments, "--config", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    before = [line for line in lines if "ALERT raise" in line and "0:44:00" < line.split()[0] < "0:54:00"]
    assert len(before) > 1
    told = (
        r"slide of 0:54:00 at XX.SIM: alert (?:raise|escalate) \w+ at 0:54:[012]\d, "
        r"(\d+) s after its onset, its trigger (\d+) s"
    )
    [found] = [match for line in lines if (match := re.fullmatch(told, line))]
    assert int(found[2]) < int(found[1])
    assert main([*arguments, "-q"]) == 0
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("slide of ")]
    assert "refractory" not in said


@needs_mosquitto
def test_a_drill_s_messages_are_all_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A subscriber sees the drill, each message of it marked, and nothing retained that could be taken for the site."""
    with running(tmp_path) as broker, Collector(broker.settings()) as seen:
        url = f"mqtt://127.0.0.1:{broker.port}"
        assert main(["simulate", "--speed", "0", "--hours", "0.1", "--broker", url, "-q"]) == 0
        capsys.readouterr()
        wait_for(lambda: any(body["phase"] == "end" for body in seen.bodies("/event")), what="the drill's end")
        bodies = seen.bodies("/event") + seen.bodies("/alert")
        assert len(bodies) > 5
        assert all(body["exercise"] is True for body in bodies)
    assert {m.topic.rsplit("/", 1)[-1] for m in seen.received} <= {"event", "alert", "availability"}


@pytest.mark.parametrize(
    "wrong", [["--hours", "0"], ["--speed", "-1"], ["--stations", "65"], ["--seed", "-1"], ["--start", "now"]]
)
def test_what_makes_no_sense_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *wrong]) == 2
    assert re.search("must (not )?be|is not a time", capsys.readouterr().err)


def test_cells_do_not_depend_on_what_was_asked_before() -> None:
    scenario = Scenario(3, steady(BUSY), 2)
    later = list(scenario.cell(7))
    for number in range(7):
        list(scenario.cell(number))
    assert list(scenario.cell(7)) == later
    assert all(7 * CELL_S <= what.at_s < 8 * CELL_S for what in later)
