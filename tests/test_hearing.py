"""What a sensor could have heard: armed, threshold, plausible; and that each way to be deaf has a name."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hearing_support import RMS, SENSOR, T0, Make, Sensor, noise

from agent.config.file import TunablesConfig
from agent.config.station import TriggerConfig
from agent.dsp.hearing import Slot, band_of
from agent.dsp.reference import least_energy, wavelet
from agent.health.hearing import HearingMemory
from agent.types import NS, StreamId

FULL_SCALE = 8_388_607


def test_until_its_averages_are_warm_a_sensor_says_when_it_will_listen() -> None:
    sensor = Sensor().play(20)
    left_s = sensor.figures().listening_in_s
    assert left_s == pytest.approx(10, abs=2)
    assert sensor.codes() == set()
    sensor.play(15)
    assert sensor.figures().listening_in_s is None
    assert sensor.codes() == set()


def test_a_sensor_that_hears_is_armed_all_the_time_and_knows_its_threshold() -> None:
    figures = Sensor().play(900).figures()
    assert (figures.armed_10min, figures.armed_hour) == (1.0, 1.0)
    assert figures.threshold is not None
    assert figures.usual is not None
    # The band passes 1 to 20 of 50 Hz of the white noise; the event needs four times the RMS that is left.
    assert figures.threshold == pytest.approx(4.0 * RMS * math.sqrt(19 / 50), rel=0.1)
    assert figures.threshold == pytest.approx(figures.usual, rel=0.05)
    assert figures.flaws == {}


@pytest.mark.parametrize(
    "trigger",
    [
        {},
        {"combine": "coincidence"},
        {"combine": "coincidence", "components_needed": 3},
        {"on": 10.0},
        {"lta_s": 60.0, "sta_s": 0.5},
        {"min_duration_s": 5.0},
        {"low_hz": 10.0, "high_hz": 30.0},
    ],
)
def test_events_above_the_threshold_trigger_and_events_below_do_not(trigger: dict[str, object]) -> None:
    settings = TriggerConfig(**trigger)
    shape = wavelet(settings, 100.0, settings.high_hz)
    quiet = Sensor(trigger).play(400)
    threshold = quiet.figures().threshold
    assert threshold is not None
    heard = {}
    for factor in (0.7, 1.4):
        sensor = Sensor(trigger).play(400)
        background = noise(7)
        onsets = range(400, 1400, 100)

        def make(
            component: str, second: int, factor: float = factor, background: Make = background, onsets: range = onsets
        ) -> np.ndarray:
            samples = background(component, second)
            assert samples is not None
            since = (second - max((onset for onset in onsets if onset <= second), default=second + 1)) * 100
            piece = shape[since : since + 100] if since >= 0 else shape[:0]
            samples[: len(piece)] += np.rint(factor * threshold * piece).astype(np.int32)
            return samples

        sensor.play(1000, make)
        found = {round((event.onset_ns - T0) / NS) for event in sensor.events if event.revision == 0}
        heard[factor] = sum(any(0 <= at - onset <= 10 for at in found) for onset in onsets)
    assert heard[1.4] >= 9, heard
    assert heard[0.7] <= 2, heard


def test_the_figures_do_not_depend_on_the_packets() -> None:
    rng = np.random.default_rng(3)
    channels = {c: np.rint(rng.normal(0, RMS, 90_000)).astype(np.int32) for c in "ENZ"}
    found = []
    for sizes in ([100], [37, 512, 3, 1600], [6000]):
        sensor = Sensor()
        for component, samples in channels.items():
            assert len(samples) == 90_000, component
        at, lengths = 0, itertools.cycle(sizes)
        while at < 90_000:
            size = next(lengths)
            for component, samples in channels.items():
                sensor.feed(component, samples[at : at + size], T0 + at * 10_000_000)
            at += size
        station = sensor.line.pipeline.stations[SENSOR]
        assert station.hearing.could_hear(T0 + 300 * NS, T0 + 320 * NS) is True
        figures = station.hearing.figures()
        found.append((figures.armed_10min, pytest.approx(figures.threshold, rel=1e-9)))
    assert found[0] == found[1] == found[2]


def test_ten_minutes_without_a_packet_are_not_armed() -> None:
    """The data stand still: that they do is known by this machine's clock alone."""
    sensor = Sensor().play(1300)
    assert sensor.codes() == set()
    assert sensor.figures(silent_s=300).armed_10min == pytest.approx(0.5, abs=0.04)
    assert sensor.figures(silent_s=700).armed_10min == 0.0
    assert sensor.codes(silent_s=300) == {"not_armed"}


def test_a_sensor_that_never_comes_to_listen_is_not_starting_for_ever() -> None:
    """Its packets tear every second: no average is ever warm."""
    torn = noise()

    def make(component: str, second: int) -> np.ndarray | None:
        samples = torn(component, second)
        return None if samples is None else samples[:40]

    sensor = Sensor({"long_gap_s": 0.3}).play(50, make)
    assert sensor.figures().listening_in_s is not None
    assert "not_armed" in sensor.play(60, make).codes()


def changed(change: Callable[[str, np.ndarray], np.ndarray | None], components: str = "ENZ") -> Make:
    background = noise(9)

    def make(component: str, second: int) -> np.ndarray | None:
        samples = background(component, second)
        assert samples is not None
        return change(component, samples) if component in components else samples

    return make


def copy_of_e() -> Make:
    background, kept = noise(9), {}

    def make(component: str, second: int) -> np.ndarray | None:
        samples = background(component, second)
        kept[component] = samples
        return kept["E"] if component == "N" else samples

    return make


def opposite_of_e() -> Make:
    copied = copy_of_e()

    def make(component: str, second: int) -> np.ndarray | None:
        samples = copied(component, second)
        return samples if samples is None or component != "N" else -samples

    return make


def again(seconds: int) -> Make:
    """What was recorded in so many seconds, over and over."""
    background, kept = noise(9), {}

    def make(component: str, second: int) -> np.ndarray | None:
        return kept.setdefault((component, second % seconds), background(component, second))

    return make


def with_hum(make: Make, counts: float) -> Make:
    """Of the mains, above the trigger's band."""
    hum = counts * np.sin(2 * np.pi * 40 * np.arange(100) / 100)

    def hummed(component: str, second: int) -> np.ndarray | None:
        samples = make(component, second)
        return None if samples is None else (samples + hum).astype(np.int32)

    return hummed


def gaps_filled(seconds: int, held: float) -> Make:
    """One in ten seconds: zeros, or the last sample before."""
    background = noise(9)

    def make(component: str, second: int) -> np.ndarray | None:
        samples, since = background(component, second), second % 10
        if samples is None or since >= seconds:
            return samples
        before = background(component, second - since - 1)
        assert before is not None
        return (0 * samples + held * before[-1]).astype(samples.dtype)

    return make


WAYS_TO_BE_DEAF: dict[str, tuple[Make, set[str]]] = {
    "zeros": (changed(lambda c, x: 0 * x), {"constant", "not_armed"}),
    "full scale": (changed(lambda c, x: 0 * x + FULL_SCALE), {"constant", "not_armed"}),
    "one component is constant": (changed(lambda c, x: 0 * x - 17, "N"), {"constant"}),
    "one component is a copy of another": (copy_of_e(), {"copies"}),
    "one component is another with the opposite sign": (opposite_of_e(), {"copies"}),
    "the recorder sends one packet for ever": (again(1), {"repeats", "not_armed"}),
    "the recorder sends a buffer of 50 s for ever": (again(50), {"repeats", "not_armed"}),
    "gaps of 3 s are filled with zeros": (gaps_filled(3, 0.0), {"filled"}),
    "gaps of 3 s are filled with what came last": (gaps_filled(3, 1.0), {"filled"}),
    "each sample comes 30 times": (changed(lambda c, x: np.repeat(x[::30], 30)[:100]), {"filled"}),
    "the gain is too high": (changed(lambda c, x: np.clip(x * 100, -5000, 5000), "Z"), {"clipped", "threshold_high"}),
    "the sensor is disconnected": (changed(lambda c, x: (x > 450).astype(np.int32)), {"last_bit", "not_armed"}),
    "one coil is loose": (changed(lambda c, x: x * 2000, "E"), {"louder", "threshold_high"}),
    "the sensor is disconnected, the recorder's noise is 20 counts": (noise(8, 20.0), {"disconnected", "not_armed"}),
    "the same with mains hum": (with_hum(noise(8, 20.0), 1000.0), {"disconnected", "not_armed"}),
    "one component has no sensor": (changed(lambda c, x: x // 10, "N"), {"disconnected"}),
    "one component moves by less than a count": (changed(lambda c, x: np.rint(x / 400).astype(np.int32), "E"),
                                                 {"last_bit"}),
    "all are a thousand times louder": (changed(lambda c, x: x * 2000), {"louder", "threshold_high"}),
    "noise is twenty times as loud": (changed(lambda c, x: x * 20), {"threshold_high"}),
    "nothing comes": (changed(lambda c, x: None), set()),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS_TO_BE_DEAF)
def test_each_way_to_be_deaf_has_its_name(way: str) -> None:
    make, expected = WAYS_TO_BE_DEAF[way]
    sensor = Sensor().play(1500)
    assert sensor.codes() == set()
    assert sensor.play(700, make).codes() - {"always_triggered"} == expected
    hearing = sensor.line.pipeline.stations[SENSOR].hearing
    if way != "nothing comes":
        hears = not expected & {"not_armed", "threshold_high"}
        assert hearing.could_hear(T0 + 1900 * NS, T0 + 1920 * NS) is hears
    assert hearing.could_hear(T0 + 1400 * NS, T0 + 1420 * NS) is True


def test_the_spectrum_of_a_minute_is_asked_for_where_it_can_tell_something() -> None:
    """Protects the speed of a site that moves, and the look at one that has fallen silent."""
    still, steps = noise(8, 20.0), np.sin(2 * np.pi * 5 * np.arange(100) / 100)

    def ground(component: str, second: int) -> np.ndarray:
        return (still(component, second) * 10 + (600 + second / 10) * steps).astype(np.int32)

    sensor = Sensor().play(1500, ground)
    hearing = sensor.line.pipeline.stations[SENSOR].hearing
    assert hearing.doubtful("ENZ", T0 + 1500 * NS) == set()
    sensor.play(120, still)
    assert hearing.doubtful("ENZ", T0 + 1620 * NS) == {"E", "N", "Z"}
    assert sensor.play(300, still).codes() == {"disconnected", "not_armed"}


def test_a_quiet_site_below_the_noise_of_its_recorder_is_not_without_a_sensor() -> None:
    """As after those have left who installed it: what moves the ground a little says that the sensor is there."""
    sensor, quiet = Sensor().play(1500), noise(8, 20.0)
    assert sensor.play(300, quiet).codes() == {"disconnected", "not_armed"}
    steps = np.sin(2 * np.pi * 5 * np.arange(100) / 100)

    def moved(component: str, second: int) -> np.ndarray:
        samples = quiet(component, second)
        assert samples is not None
        return (samples + 25 * steps).astype(np.int32)

    sensor.play(60, moved)
    assert sensor.play(900, quiet).codes() == set()


@pytest.mark.parametrize(("late_s", "share"), [(0.06, 0.1), (0.09, 0.1), (0.11, 0.3)])
def test_stamps_that_come_late_now_and_then_leave_every_component_alive(late_s: float, share: float) -> None:
    """Of each component by itself: the clock that is estimated from them may be far off, and no average begins anew."""
    sensor, background, chance = Sensor(), noise(), np.random.default_rng(1)
    for second in range(700):
        for quarter, component in itertools.product(range(4), "ENZ"):
            samples = background(component, second)
            assert samples is not None
            stamp_ns = T0 + second * NS + quarter * NS // 4 + round(late_s * NS) * int(chance.random() < share)
            sensor.feed(component, samples[:25], stamp_ns)
    assert sensor.figures().armed_10min == 1.0
    for counts in sensor.line.pipeline.stations[SENSOR].counts.values():
        assert (counts.samples, counts.gaps, counts.overlaps) == (70_000, 0, 0)


@pytest.mark.parametrize(
    ("others", "again", "rate_hz", "expected"),
    [
        (True, False, 100.0, {"mixed"}),
        (False, True, 100.0, set()),
        (False, False, 50.0, {"rate_wrong"}),
        (False, False, 110.0, {"rate_wrong"}),
        (False, False, 101.0, set()),
    ],
)
def test_what_packets_claim_against_each_other_is_told_of(
    others: bool, again: bool, rate_hz: float, expected: set[str]
) -> None:
    """Another recorder under the same name, whose packets come later; the same packets once more; another rate."""
    sensor, made, other = Sensor(), noise(1), noise(2)
    for second in range(90):
        packets = [(component, made(component, second), other(component, second)) for component in "ENZ"]
        for component, samples, else_ in packets:
            assert samples is not None
            assert else_ is not None
            for one in [samples, *([else_] if others else []), *([samples] if again else [])]:
                sensor.feed(component, one, T0 + second * NS, rate_hz)
    assert sensor.codes() & {"mixed", "rate_wrong"} == expected


def test_a_component_a_thousand_times_quieter_than_the_others_is_named() -> None:
    loud = noise(2, 40_000.0)

    def make(component: str, second: int) -> np.ndarray | None:
        samples = loud(component, second)
        assert samples is not None
        return np.rint(samples / 2000).astype(np.int32) if component == "E" else samples

    sensor = Sensor().play(700, make)
    assert sensor.codes() == {"quieter"}


def test_smooth_waves_that_are_rounded_to_counts_are_not_clipped() -> None:
    t = np.arange(100) / 100

    def make(component: str, second: int) -> np.ndarray:
        swell = 400 * np.sin(2 * np.pi * (second + t) / 6 + "ENZ".index(component))
        return np.rint(swell + noise(second, 3.0)(component, second)).astype(np.int32)

    assert Sensor().play(1300, make).codes() == set()


def test_one_large_event_is_no_fault_and_a_series_of_bursts_is() -> None:
    background = noise(4)

    def bursts(every_s: int) -> Make:
        def make(component: str, second: int) -> np.ndarray | None:
            samples = background(component, second)
            assert samples is not None
            return samples * 200 if second % every_s < 10 else samples

        return make

    sensor = Sensor().play(1500)
    sensor.play(10, changed(lambda c, x: x * 200)).play(200)
    assert sensor.codes() == set()
    assert "threshold_high" in Sensor().play(1500).play(900, bursts(180)).codes()


@pytest.mark.parametrize(
    "trigger", [{"on": 400.0}, {"on": 29.0}, {"lta_s": 10.0, "on": 12.0}, {"min_duration_s": 60.0}]
)
def test_settings_with_which_nothing_triggers_are_told_of(trigger: dict[str, object]) -> None:
    assert "cannot_trigger" in Sensor(trigger).play(100).codes()


def test_a_trigger_that_does_not_end_is_told_of() -> None:
    assert "always_triggered" in Sensor({"on": 1.1, "off": 0.1}).play(1200).codes()


def test_a_configured_limit_is_kept_to() -> None:
    sensor = Sensor().play(900)
    threshold = sensor.figures().threshold
    assert threshold is not None
    assert sensor.codes(limit_counts=0.9 * threshold) == {"threshold_limit"}
    assert sensor.codes(limit_counts=1.1 * threshold) == set()


def test_a_clock_that_is_set_back_takes_the_history_along() -> None:
    sensor = Sensor().play(1500)
    sensor.second -= 1000
    for component in "ENZ":
        sensor.line.pipeline.forget(StreamId(SENSOR, component))
    sensor.play(100)
    figures = sensor.figures()
    assert figures.armed_10min is not None
    assert 0.85 < figures.armed_10min < 1.0, "only the new warm-up is missing"


def test_what_is_usual_outlives_a_restart_and_a_change_of_settings() -> None:
    sensor = Sensor().play(4000)
    hearing = sensor.line.pipeline.stations[SENSOR].hearing
    slots = hearing.slots
    assert len(slots) >= 5
    assert isinstance(slots[0], Slot)
    usual = sensor.figures().usual
    assert usual is not None
    later = Sensor()
    later.second = sensor.second
    later.line.pipeline.remembered = {SENSOR: slots}
    later.play(700, changed(lambda c, x: x * 30))
    assert later.figures().usual == pytest.approx(usual, rel=0.2)
    assert "threshold_high" in later.codes()
    sensor.line.retune(TunablesConfig(trigger=TriggerConfig(on=10.0)), 0)
    sensor.play(60)
    figures = sensor.figures()
    assert figures.usual == pytest.approx(usual, rel=0.05)
    assert (figures.armed_10min, figures.listening_in_s) == (1.0, None)


def test_the_reference_event_needs_more_where_the_settings_ask_for_more() -> None:
    def least(**changes: object) -> float:
        settings = TriggerConfig(**changes)
        return least_energy(settings, 100.0, settings.high_hz)

    assert least() < least(on=8.0) < least(on=16.0) < math.inf
    assert least(on=400.0) == math.inf
    assert math.sqrt(least()) == pytest.approx(4.0, abs=0.1)


def test_what_is_usual_is_kept_in_a_file_that_may_be_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = HearingMemory(tmp_path)
    assert memory.read() == {}
    band = band_of(TriggerConfig())
    slots = (Slot(1_700_000_400, 312.5, {"E": 80.0, "Z": 77.0}, band), Slot(1_700_001_000, 310.0, {"Z": 78.5}, band))
    memory.tick(time.monotonic(), lambda: {SENSOR: slots})
    assert memory.read() == {}, "once in ten minutes is enough"
    memory.tick(time.monotonic() + 601, lambda: {SENSOR: slots})
    assert HearingMemory(tmp_path).read() == {SENSOR: slots}
    (file,) = tmp_path.iterdir()
    for damaged in (b"", b"{", file.read_bytes()[:-9], b'{"sensors":{"XX.A.00.HH":[{"start_s":1}]}}', b"\xff"):
        file.write_bytes(damaged)
        caplog.clear()
        assert HearingMemory(tmp_path).read() == {}
        assert "is not used" in caplog.text
    (tmp_path / "file").write_text("")
    caplog.clear()
    refused = HearingMemory(tmp_path / "file")
    refused.write({SENSOR: slots})
    refused.write({SENSOR: slots})
    assert len(caplog.records) == 1
