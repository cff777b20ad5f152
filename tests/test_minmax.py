"""Minima and maxima of seconds: the same whatever the packets, small; gaps stay gaps as far as the desk."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_support import write_config
from broker_support import stamp
from desk_support import START_NS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_messages import extremes

from agent.cli import main
from agent.config.broker import MqttSettings
from agent.deliver.connection import Received
from agent.detect.envelope import BLOCK_S, Envelope, Extremes
from agent.errors import DataError
from agent.messages.envelope import Packed, merged, pack, unpack
from agent.messages.payloads import envelope_message
from agent.messages.schema import MinMaxMessage, parse
from agent.types import NS, SampleBlock, StationId, StreamId
from desk.drum import drum_of
from desk.receive import Receiver
from desk.store.store import Arrival, Store

STREAM = StreamId(StationId("XX", "SLP", "00", "HH"), "Z")
RATE = 20.0


def block(samples: NDArray[Any], start_ns: int, rate_hz: float = RATE) -> SampleBlock:
    return SampleBlock(STREAM, start_ns, rate_hz, samples)


def noise(seconds: int, seed: int = 1, rate_hz: float = RATE) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(100.0, 300.0, round(seconds * rate_hz))).astype(np.int32)


def shown(blocks: list[Extremes]) -> list[tuple[int, str, str]]:
    return [(one.start_ns, one.low.tobytes().hex(), one.high.tobytes().hex()) for one in blocks]


@pytest.mark.parametrize("seed", range(10))
def test_packets_however_cut_repeated_or_a_little_late_give_the_same_blocks(seed: int) -> None:
    draw = random.Random(seed)
    samples = noise(2 * BLOCK_S + 100)
    whole, cut = Envelope(), Envelope()
    expected, found = [], []
    for begin in range(0, len(samples), 400):
        expected += whole.feed(block(samples[begin : begin + 400], START_NS + round(begin / RATE * NS)))
    expected += whole.flush()
    begin, waiting = 0, []
    while begin < len(samples) or waiting:
        n = draw.randint(5, 200)
        if begin < len(samples):
            waiting.append(block(samples[begin : begin + n], START_NS + round(begin / RATE * NS)))
            begin += n
        while waiting and (begin >= len(samples) or draw.random() < 0.6):
            one = waiting.pop(draw.randrange(len(waiting)) if len(waiting) < 3 else 0)
            for _ in range(draw.randint(1, 2)):
                found += cut.feed(one)
    found += cut.flush()
    assert len(expected) == 3
    for one, other in zip(shown(expected), shown(found), strict=True):
        assert one == other


def test_a_second_holds_the_extremes_of_its_own_samples_and_a_gap_stays_empty() -> None:
    meter = Envelope()
    samples = np.arange(100, dtype=np.float64)
    samples[42] = np.nan
    samples[7] = 1e30
    meter.feed(block(samples, START_NS + NS // 2))
    meter.feed(block(samples, START_NS + 100 * NS))
    (found,) = meter.flush()
    assert found.start_ns == START_NS
    assert found.low[:6].tolist() == [0, 10, 30, 50, 70, 90]
    assert found.high[:6].tolist() == [9, 29, 49, 69, 89, 99]
    assert np.flatnonzero(np.isfinite(found.low)).tolist() == [*range(6), *range(100, 105)]


def test_a_clock_that_was_wrong_by_years_silences_no_day() -> None:
    meter = Envelope()
    meter.feed(block(noise(10), START_NS + 20 * 365 * 86_400 * NS))
    blocks = []
    for n in range(0, 1300, 10):
        blocks += meter.feed(block(noise(10), START_NS + n * NS))
    assert [one.start_ns for one in blocks if one.start_ns < START_NS + 86_400 * NS] == [
        START_NS,
        START_NS + BLOCK_S * NS,
    ]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000), size=st.sampled_from([0.0, 1e-3, 1.0, 1e4, 1e9, 1e17]), missing=st.floats(0, 1),
    offset=st.sampled_from([0.0, -1e5, 1e12]),
)  # fmt: skip
def test_what_is_unpacked_holds_what_was_packed_to_a_step(
    seed: int, size: float, missing: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    middle = offset + rng.normal(0, size, 300)
    low, high = middle - np.abs(rng.normal(0, size, 300)), middle + np.abs(rng.normal(0, size, 300))
    low[rng.random(300) < missing] = np.nan
    high[np.isnan(low)] = np.nan
    packed = pack(low, high)
    lows, highs = unpack(packed)
    known = np.isfinite(low)
    assert (np.isfinite(lows) == known).all()
    assert np.all(lows[known] <= low[known])
    assert np.all(highs[known] >= high[known])
    assert np.all(low[known] - lows[known] <= packed.scale)
    assert np.all(highs[known] - high[known] <= packed.scale)


@pytest.mark.parametrize("data", ["", "AAAA", "eJwDAAAAAAE=", "not base64!", pack(*extremes()).data[:-40]])
def test_what_is_damaged_or_swells_is_refused(data: str) -> None:
    with pytest.raises(DataError):
        unpack(Packed(600, 1.0, data))
    bomb = pack(np.zeros(3600), np.zeros(3600)).data
    with pytest.raises(DataError, match="4801 bytes"):
        unpack(Packed(600, 1.0, bomb))


def test_a_day_of_messages_stays_near_a_quarter_of_a_megabyte() -> None:
    message = envelope_message(STREAM.station, "Z", START_NS, extremes(), stamp())
    assert 144 * (len(message.payload) + len(message.topic)) < 300_000


def test_a_replay_sends_them_only_where_they_are_switched_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from agent.alert.evidence import encode
    from agent.types import Segment

    samples = noise(1500, rate_hz=100.0)
    path = tmp_path / "z.mseed"
    path.write_bytes(encode({STREAM: [Segment(START_NS, 100.0, samples)]}))
    found = {}
    for name, section in (("on", "{component: Z}"), ("off", "{}")):
        config = write_config(tmp_path / name, path, envelope=section)
        assert main(["replay", str(path), "--config", str(config), "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        found[name] = [line for line in lines if line["schema"] == "talus/minmax/1"]
    assert found["off"] == []
    bodies = [parse(MinMaxMessage, json.dumps(line).encode()) for line in found["on"]]
    assert [(body.station, body.component, body.start[11:19]) for body in bodies] == [
        ("XX.SLP.00.HH", "Z", f"00:{minute:02d}:00") for minute in (0, 10, 20)
    ]
    low = np.concatenate([unpack(Packed(body.count, body.scale, body.data))[0] for body in bodies])
    assert int(np.isfinite(low).sum()) == 1500
    assert abs(low[700] - samples[70_000:70_100].min()) <= bodies[1].scale


def message(low: NDArray[np.float64], high: NDArray[np.float64], start_ns: int = START_NS) -> MinMaxMessage:
    return parse(MinMaxMessage, envelope_message(STREAM.station, "Z", start_ns, (low, high), stamp()).payload)


def test_the_desk_puts_the_halves_of_a_block_together_and_shows_the_day(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    low, high = np.full(600, -100.0), np.full(600, 100.0)
    first, second = low.copy(), low.copy()
    first[300:], second[:250] = np.nan, np.nan
    for half in (first, second, first):
        store.ingest([Arrival("XX.SLP", message(half, np.where(np.isnan(half), np.nan, high)), START_NS)])
    late = START_NS + 23 * 3600 * NS + 55 * 60 * NS
    store.ingest([Arrival("XX.SLP", message(low, high, late), START_NS)])
    with store.engine.connect() as connection:
        day = drum_of(connection, None, "XX.SLP", START_NS)
        following = drum_of(connection, None, "XX.SLP", START_NS + 86_400 * NS)
    assert (day.source, np.flatnonzero(np.isfinite(day.low)).tolist()) == (
        "envelope", [*range(600), *range(86_100, 86_400)],
    )  # fmt: skip
    assert int(np.isfinite(following.low).sum()) == 300
    assert np.nanmax(np.abs(day.low)) < 110


def test_old_minima_and_maxima_make_room(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/desk.db", envelope_days=10)
    one = message(*extremes())
    store.ingest([Arrival("XX.SLP", one, START_NS)])
    later = message(*extremes(), START_NS + 11 * 86_400 * NS)
    store.ingest([Arrival("XX.SLP", later, START_NS + 11 * 86_400 * NS)])
    with store.engine.connect() as connection:
        assert drum_of(connection, None, "XX.SLP", START_NS).source == "none"
        assert drum_of(connection, None, "XX.SLP", START_NS + 11 * 86_400 * NS).source == "envelope"


def test_the_desk_takes_a_good_one_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/desk.db")
    receiver = Receiver(MqttSettings(host="localhost", port=1), store, "desk")
    payload = envelope_message(STREAM.station, "Z", START_NS, extremes(), stamp()).payload

    def checked(body: bytes, name: str = "SLP") -> Arrival:
        topic = f"talus/v1/XX/{name}/envelope"
        return receiver._checked(Received(topic, body, False), START_NS)

    assert isinstance(checked(payload).body, MinMaxMessage)
    body = json.loads(payload)
    for change in ({"data": "AAAA"}, {"count": 601}, {"start": "1969-01-01T00:00:00.000000000Z"}, {"scale": 0.0}):
        with pytest.raises(DataError):
            checked(json.dumps(body | change).encode())
    with pytest.raises(DataError, match="it says that it is from"):
        checked(payload, "TOE")


def test_merging_is_the_same_in_both_orders() -> None:
    low, high = extremes()
    one, other = pack(low[:400], high[:400]), pack(low + 7.0, high + 7.0)
    assert [part.tobytes() for part in unpack(merged(one, other))] == [
        part.tobytes() for part in unpack(merged(other, one))
    ]
