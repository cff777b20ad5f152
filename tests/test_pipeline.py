"""The station's promise: the same record gives the same events, however it arrives, and no trigger goes unexplained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.config.station import TriggerConfig
from agent.detect.pipeline import Pipeline
from agent.detect.station import Output
from agent.dsp.window import Preparation
from agent.errors import BackendError, DataError
from agent.inference import Classifier
from agent.types import NS, Classification, Discard, Event, SampleBlock, StreamId, Window

T0 = 1_772_366_400 * NS
AT_S = (3.0, 5.0, 10.0, 20.0, 40.0, 80.0)
TRIGGER = TriggerConfig()


def _record(seconds: float, events: Sequence[tuple[float, float]], rate: float = 100.0) -> NDArray[np.int32]:
    """Three components of noise with decaying 5 Hz bursts: (onset s, decay s)."""
    rng = np.random.default_rng(7)
    t = np.arange(round(seconds * rate)) / rate
    out = rng.normal(0, 100, (3, len(t)))
    for onset, decay in events:
        tail = np.clip(t - onset, 0, None)
        burst = np.where(t >= onset, np.exp(-tail / decay) * np.sin(2 * np.pi * 5 * tail), 0)
        out += np.array([[2000], [3000], [4000]]) * burst
    return out.astype(np.int32)


def _blocks(data: NDArray[np.int32], cuts: Sequence[int], rate: float = 100.0) -> list[SampleBlock]:
    """All components cut at the same samples and delivered in turn, as recorders do."""
    repeats = -(-data.shape[1] // sum(cuts))
    edges = [0, *np.cumsum(list(cuts) * repeats).tolist()]
    edges = [e for e in edges if e < data.shape[1]] + [data.shape[1]]
    return [
        SampleBlock(StreamId.parse(f"XX.SLOPE..HH{c}"), T0 + round(a * NS / rate), rate, data[row, a:b])
        for a, b in itertools.pairwise(edges)
        for row, c in enumerate("ENZ")
    ]


def _run(blocks: Sequence[SampleBlock], classifier: object, trigger: TriggerConfig = TRIGGER) -> list[Output]:
    pipeline = Pipeline(trigger, AT_S, classifier)  # type: ignore[arg-type]
    outputs = [output for block in blocks for output in pipeline.feed(block)]
    return outputs + pipeline.flush()


def _events(outputs: Sequence[Output]) -> list[Event]:
    return [output for output in outputs if isinstance(output, Event)]


DATA = _record(300, [(60.0, 4.0), (150.0, 20.0)])


@pytest.fixture(scope="module")
def expected(classifier: Classifier) -> list[Output]:
    return _run(_blocks(DATA, [100] * 300), classifier)


def test_an_event_lives_from_new_to_end(expected: list[Output]) -> None:
    """Consumers rely on new, updates at growing windows, one end, and revisions without holes."""
    first = [event for event in _events(expected) if event.id == _events(expected)[0].id]
    assert [event.phase for event in first] == ["new", *["update"] * 5, "end"]
    assert [event.revision for event in first] == list(range(7))
    windows = [event.classification.window_s for event in first if event.classification]
    assert windows == [3.0, 5.0, 10.0, 20.0, 40.0, 80.0, 81.92]
    assert abs(first[0].onset_ns - (T0 + 60 * NS)) < 0.5 * NS
    assert first[0].id.startswith(f"{first[0].station}-20260301T1201")


def test_both_bursts_are_found_and_nothing_else(expected: list[Output]) -> None:
    assert len({event.id for event in _events(expected)}) == 2


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(20, 5000), min_size=1, max_size=40))
def test_events_do_not_depend_on_packets(classifier: Classifier, expected: list[Output], cuts: list[int]) -> None:
    """Else a replay would not show what the station did, and a digitizer's setting would change the alerts."""
    assert _run(_blocks(DATA, cuts), classifier) == expected


class _Keeps:
    """Says noise, and keeps the windows it was shown."""

    preparation = Preparation()

    def __init__(self) -> None:
        self.windows: list[Window] = []

    def classify(self, window: Window) -> Classification:
        self.windows.append(window)
        probabilities = (0.0, 0.0, 0.0, 0.0, 1.0)
        return Classification("noise", 1.0, probabilities, False, window.seconds, "keeps", "0" * 64, "none", "none")


def test_the_next_event_does_not_enter_the_window_of_the_one_before() -> None:
    """Else a rockfall is named after the earthquake that follows it within the minute."""
    shown = _Keeps()
    events = _events(_run(_blocks(_record(300, [(150.0, 1.0), (162.5, 3.0)]), [100] * 300), shown))
    first, second = sorted({event.onset_ns for event in events})
    own = [window for window in shown.windows if window.onset_ns == first]
    assert [window.seconds for window in own] == [3.0, 5.0, 10.0, (second - first) / NS]
    assert all(not window.data[:, 2048 + round(100 * window.seconds) :].any() for window in own)
    last = [event for event in events if event.onset_ns == first][-1]
    assert last.phase == "end" and last.data_ns > second
    assert last.classification is not None and last.classification.window_s == own[-1].seconds
    assert max(window.seconds for window in shown.windows if window.onset_ns == second) == 81.92


def test_a_short_trigger_is_discarded_with_its_reason(classifier: Classifier) -> None:
    trigger = TriggerConfig(min_duration_s=30.0)
    outputs = _run(_blocks(DATA, [100] * 300), classifier, trigger)
    reasons = [output.reason for output in outputs if isinstance(output, Discard)]
    assert reasons and "min_duration_s" in reasons[0]


class _Broken:
    """A classifier whose runtime fails: what a station meets when a driver dies."""

    def __init__(self, inner: Classifier) -> None:
        self.preparation = inner.preparation

    def classify(self, window: Window) -> Classification:
        raise BackendError("the runtime is gone")


def test_without_a_verdict_the_event_is_still_reported(classifier: Classifier) -> None:
    """A broken network must not make a station silent."""
    events = _events(_run(_blocks(DATA, [100] * 300), _Broken(classifier)))
    assert len({event.id for event in events}) == 2
    assert all(event.classification is None and event.reason == "the runtime is gone" for event in events)


def test_the_end_of_data_closes_what_is_open(classifier: Classifier) -> None:
    cut = DATA[:, : 100 * 70]
    events = _events(_run(_blocks(cut, [100] * 70), classifier))
    assert events[-1].phase == "end"
    assert events[-1].classification is not None
    assert events[-1].classification.window_s == pytest.approx(10.0, abs=0.5)


def test_one_component_alone_works(classifier: Classifier) -> None:
    blocks = [block for block in _blocks(DATA, [100] * 300) if block.stream.component == "Z"]
    events = _events(_run(blocks, classifier))
    assert len({event.id for event in events}) == 2
    assert {event.quality.components for event in events} == {"Z"}


def test_a_gap_in_the_window_is_told(classifier: Classifier) -> None:
    blocks = [b for b in _blocks(DATA, [100] * 300) if not T0 + 64 * NS <= b.start_ns < T0 + 66 * NS]
    events = _events(_run(blocks, classifier))
    assert max(event.quality.gap_s for event in events if event.onset_ns < T0 + 100 * NS) == pytest.approx(
        2.0, abs=0.02
    )


def test_a_packet_beyond_the_limit_is_refused(classifier: Classifier) -> None:
    """What is kept of a stream is sized for packets of a minute; a longer one would push out what is still needed."""
    with pytest.raises(DataError, match="too long"):
        _run(_blocks(DATA, [100 * 90]), classifier)


def test_unknown_components_are_ignored(classifier: Classifier, expected: list[Output]) -> None:
    """A state-of-health channel beside the seismic ones must not disturb them."""
    blocks = _blocks(DATA, [100] * 300)
    odd = [SampleBlock(StreamId.parse("XX.SLOPE..HHX"), b.start_ns, b.rate_hz, b.samples) for b in blocks[::3]]
    mixed = [block for pair in zip(odd, blocks[::3], blocks[1::3], blocks[2::3], strict=True) for block in pair]
    assert _run(mixed, classifier) == expected


def test_a_sensor_that_sends_its_horizontals_twice_loses_neither_window_nor_event(
    classifier: Classifier, expected: list[Output]
) -> None:
    """HH1 beside HHN is the same row of the input: one of them is kept, and the other refused by name."""
    pipeline = Pipeline(TRIGGER, AT_S, classifier)
    outputs: list[Output] = []
    for block in _blocks(DATA, [100] * 300):
        outputs += pipeline.feed(block)
        again = StreamId(block.stream.station, {"E": "2", "N": "1", "Z": "3"}[block.stream.component])
        with pytest.raises(DataError, match="same direction"):
            pipeline.feed(replace(block, stream=again))
    assert outputs + pipeline.flush() == expected


def test_a_component_may_go_on_under_another_name(classifier: Classifier) -> None:
    """HH1 takes the place of an HHN that has been silent for a minute; HHN that of HH1 at once."""
    spans = {"HHE": [(0, 400)], "HHZ": [(0, 400)], "HHN": [(0, 100), (260, 400)], "HH1": [(170, 260)]}
    blocks = [
        replace(block, stream=StreamId.parse(f"XX.SLOPE..{name}"))
        for block in _blocks(_record(400, [(220.0, 4.0), (310.0, 4.0)]), [100] * 400)
        for name in {"E": ("HHE",), "N": ("HHN", "HH1"), "Z": ("HHZ",)}[block.stream.component]
        if any(begin <= (block.start_ns - T0) / NS < end for begin, end in spans[name])
    ]
    events = _events(_run(blocks, classifier))
    assert [event.quality.components for event in events if event.phase == "end"] == ["ENZ", "ENZ"]
    assert max(event.quality.gap_s for event in events) == 0


def test_a_clock_set_back_ends_what_is_open_with_the_data_at_hand(classifier: Classifier) -> None:
    """Waiting for times that come again in an hour, or never, the event would stay open."""
    blocks = [
        block if block.start_ns < T0 + 70 * NS else replace(block, start_ns=block.start_ns - 3600 * NS)
        for block in _blocks(DATA, [100] * 300)
    ]
    first, *_, last = [event for event in _events(_run(blocks, classifier)) if event.onset_ns > T0]
    assert (first.id, last.phase) == (last.id, "end")
    assert last.quality.components == "ENZ"
    assert last.classification is not None
    assert last.classification.window_s == pytest.approx(10.0, abs=0.1)


def test_another_sampling_rate_in_the_middle_of_an_event_leaves_its_onset_in_the_window() -> None:
    class Looks:
        """Says noise, and notes how much of each window was recorded."""

        preparation = Preparation()

        def __init__(self) -> None:
            self.coverage: list[tuple[float, ...]] = []

        def classify(self, window: Window) -> Classification:
            self.coverage.append(window.coverage)
            return Classification("noise", 1.0, (0, 0, 0, 0, 1.0), False, window.seconds, "m", "0" * 64, "b", "p")

    before = [block for block in _blocks(DATA, [100] * 300) if block.start_ns < T0 + 67 * NS]
    faster = _blocks(_record(300, [(60.0, 4.0)], 200.0), [200] * 300, 200.0)
    looks = Looks()
    _run([*before, *(block for block in faster if block.start_ns >= T0 + 67 * NS)], looks)
    assert min(map(min, looks.coverage)) > 0.99
