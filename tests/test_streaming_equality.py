"""Streaming triggers are ObsPy's batch triggers on the same filtered data, sample for sample, for any packets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import obspy
import pytest
from detector_support import STATION, band_passed, changed, detect, filter_rounding, ground, packets, spans, time_of
from hypothesis import given, settings
from hypothesis import strategies as st
from obspy.signal.filter import bandpass
from obspy.signal.trigger import recursive_sta_lta, trigger_onset

from agent.config.station import TriggerConfig
from agent.dsp.detector import Detector
from agent.dsp.sos import SosFilter, butterworth
from agent.types import Samples, TriggerOff, TriggerOn

LIVELY = TriggerConfig(sta_s=0.5, lta_s=10.0, on=3.0, off=1.5, merge_s=0.0, max_duration_s=3600.0)
"""Short averages and a low threshold: several triggers even in a minute of data."""

RECORDS = [
    "signal/tests/data/BW.UH1._.SHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH2._.SHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH4._.EHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/CRLZ.HHZ.10.NZ.SAC",
    "signal/tests/data/timingquality.mseed",
    "signal/tests/data/IM.I59H1..BDF_2020_10_31.mseed",
    "clients/fdsn/tests/data/dataselect_example.mseed",
    "io/mseed/tests/data/1T_MONN_00_EDH.mseed",
    "io/mseed/tests/data/test.mseed",
    "io/nied/tests/data/test.knet",
    "io/seisan/tests/data/9701-30-1048-54S.MVO_21_1",
    "io/seisan/tests/data/2005-07-23-1452-04S.CER___030.mseed",
    "io/win/tests/data/1070533011_1701260003.win",
    "io/y/tests/data/YAYT_BHZ_20021223.124800",
    "realtime/tests/data/II.TLY.BHZ.SAC",
]


def batch(trigger: TriggerConfig, channels: dict[str, Samples], rate_hz: float) -> list[list[int]]:
    """ObsPy's triggers on the channels as the detector filters them: on their vector sum, or by coincidence."""
    filtered = [band_passed(trigger, samples, rate_hz) for samples in channels.values()]
    nsta, nlta = round(trigger.sta_s * rate_hz), round(trigger.lta_s * rate_hz)
    if trigger.combine == "vector":
        ratio = recursive_sta_lta(np.sqrt(np.sum(np.square(filtered), axis=0)), nsta, nlta)
    else:
        each = [recursive_sta_lta(signal, nsta, nlta) for signal in filtered]
        ratio = np.sort(each, axis=0)[-min(trigger.components_needed, len(each))]
    longest = round(trigger.max_duration_s * rate_hz)
    found = trigger_onset(np.nan_to_num(ratio), trigger.on, trigger.off, max_len=longest)
    return [[int(on), int(off)] for on, off in found]


def peaks(changes: Sequence[TriggerOn | TriggerOff]) -> list[float]:
    return [change.peak_ratio for change in changes if isinstance(change, TriggerOff)]


@pytest.mark.parametrize("name", RECORDS)
def test_single_components_of_real_records(name: str, obspy_data: Path) -> None:
    """Protects the claim on real ground motion: 20 to 200 Hz, short-period, broadband, accelerometer, infrasound."""
    for trace in obspy.read(str(obspy_data / name)):
        rate, samples = trace.stats.sampling_rate, trace.data
        for sizes in ([round(rate)], [1 + round(rate * 60)], [7, 512, 33]):
            changes = detect(LIVELY, packets({"Z": samples}, sizes, rate))
            assert spans(changes, rate) == batch(LIVELY, {"Z": samples}, rate)


def test_the_records_are_not_a_formality(obspy_data: Path) -> None:
    """Protects the test above: the records hold dozens of triggers."""
    traces = [trace for name in RECORDS for trace in obspy.read(str(obspy_data / name))]
    found = [batch(LIVELY, {"Z": trace.data}, trace.stats.sampling_rate) for trace in traces]
    assert sum(map(len, found)) > 100
    assert sum(bool(triggers) for triggers in found) > 30


@pytest.mark.parametrize(
    "trigger", [LIVELY, *(changed(LIVELY, combine="coincidence", components_needed=needed) for needed in (1, 2, 3))]
)
def test_three_components_of_a_real_station(trigger: TriggerConfig, obspy_data: Path) -> None:
    """Protects both ways to combine components, on the station of ObsPy's trigger tutorial."""
    pattern = "signal/tests/data/BW.UH3._.SH?.D.2010.147.cut.slist.gz"
    channels = {trace.stats.channel[-1]: trace.data for trace in obspy.read(str(obspy_data / pattern))}
    expected = batch(trigger, channels, 50.0)
    assert len(expected) > 1
    for sizes in ([50], [3000], [50, 17, 64, 200]):
        assert spans(detect(trigger, packets(channels, sizes, 50.0)), 50.0) == expected


def test_continuous_slope_data(data_dir: Path) -> None:
    """Protects the claim on a slope's own noise: 80 minutes of five three-component stations, where present."""
    for station in ("LH01", "LH03"):
        stream = obspy.read(str(data_dir / "streams" / "rocknet_2020_088_13" / f"*{station}*"))
        rate = stream[0].stats.sampling_rate
        channels = {trace.stats.channel[-1]: trace.data[:200_000] for trace in stream}
        assert len(channels) == 3
        for trigger in (LIVELY, changed(LIVELY, combine="coincidence")):
            expected = batch(trigger, channels, rate)
            assert expected
            assert spans(detect(trigger, packets(channels, [round(rate)], rate)), rate) == expected


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 6000), min_size=1, max_size=5),
    components=st.sampled_from(["Z", "EN", "ENZ"]),
    combine=st.sampled_from(["vector", "coincidence"]),
    rate=st.sampled_from([20.0, 50.0, 100.0, 250.0, 1000.0]),
    events=st.lists(st.tuples(st.integers(500, 8000), st.integers(20, 900), st.floats(3, 50)), max_size=5),
    longest_s=st.sampled_from([2.0, 3600.0]),
    at_once=st.booleans(),
)
def test_packets_do_not_matter(
    *,
    sizes: list[int],
    components: str,
    combine: str,
    rate: float,
    events: list[tuple[int, int, float]],
    longest_s: float,
    at_once: bool,
) -> None:
    """Protects replays and bug reports: any packets, misaligned between components too, give ObsPy's triggers, and the
    same ratios as the record in one piece, whether decisions wait for each other or not."""
    trigger = TriggerConfig(
        sta_s=50 / rate, lta_s=1000 / rate, low_hz=rate / 100, high_hz=rate / 2, on=3.0, merge_s=0.0,
        combine="vector" if combine == "vector" else "coincidence", max_duration_s=longest_s,
    )  # fmt: skip
    channels: dict[str, Samples] = {c: ground(9000, events, seed, rate) for seed, c in enumerate(components)}
    in_one = detect(trigger, packets(channels, [9000], rate))
    in_packets = detect(trigger, packets(channels, sizes, rate), at_once=at_once)
    assert spans(in_packets, rate) == spans(in_one, rate) == batch(trigger, channels, rate)
    assert in_packets == in_one


def test_one_sample_a_packet() -> None:
    """Protects the extreme of small packets."""
    channels: dict[str, Samples] = {c: ground(3000, [(2000, 200, 20)], seed) for seed, c in enumerate("ENZ")}
    found = detect(LIVELY, packets(channels, [1]))
    assert found == detect(LIVELY, packets(channels, [100]))
    assert spans(found) == batch(LIVELY, channels, 100.0) != []


def test_the_ratio_itself_is_obspys() -> None:
    """Protects the ratios that events report, not only their thresholds."""
    samples = ground(30_000, [(8000, 300, 15), (20_000, 900, 4)])
    ratio = recursive_sta_lta(band_passed(LIVELY, samples, 100.0), 50, 1000)
    changes = detect(LIVELY, packets({"Z": samples}, [100]))
    triggers = trigger_onset(ratio, LIVELY.on, LIVELY.off)
    ons = [change.ratio for change in changes if isinstance(change, TriggerOn)]
    np.testing.assert_allclose(ons, [ratio[on] for on, _ in triggers], rtol=0, atol=1e-6)
    np.testing.assert_allclose(peaks(changes), [ratio[on : off + 1].max() for on, off in triggers], rtol=0, atol=1e-6)
    detector = Detector(STATION, LIVELY)
    for packet in packets({"Z": samples}, [100]):
        detector.feed(packet)
    for first, last in ((8000, 8100), (20_000, 25_000), (29_000, 29_001)):
        peak = detector.peak_ratio(time_of(first, 100.0), time_of(last, 100.0))
        assert peak == pytest.approx(ratio[first:last].max(), abs=1e-6)


@pytest.mark.parametrize("rate", [20.0, 100.0, 1000.0])
def test_the_filter_is_obspys_band_pass(rate: float) -> None:
    """Protects the first half of the claim: begun at rest, the streaming filter is ``obspy.signal.filter.bandpass``."""
    samples = ground(20_000, [(5000, 300, 15)])
    stream = SosFilter(butterworth(1.0, 0.4 * rate, rate, 4), prime=False)
    pieces = [stream.process(samples[at : at + 333]) for at in range(0, len(samples), 333)]
    expected = bandpass(samples, 1.0, 0.4 * rate, rate, corners=4)
    tolerance = filter_rounding(1.0, rate, order=4)
    np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=0, atol=tolerance * np.abs(expected).max())
