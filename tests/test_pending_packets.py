"""The hold-back for restarts: per station, bounded, and never in the way of a place that is done with."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
from site_support import START_NS, packets

from agent.config.station import TriggerConfig
from agent.detect import resume as module
from agent.detect.pipeline import Pipeline
from agent.detect.resume import PendingPackets
from agent.inference import load
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.types import NS, SampleBlock

CLASSIFIER = load(DEFAULT_BUNDLE, ["constant:noise"])[0]


def pipeline() -> Pipeline:
    return Pipeline(TriggerConfig(sta_s=0.5, lta_s=5.0), (3.0,), CLASSIFIER)


def run(hold: PendingPackets, it: Pipeline, blocks: list[SampleBlock], *, stored: bool = True) -> None:
    for block in blocks:
        it.feed(block)
        hold.add(block)
        if stored:
            hold.release()


def test_a_station_with_an_open_event_does_not_hold_up_another() -> None:
    """The event of S1 needs data from before its onset at 110 s; the calm S2 those of the last seconds only."""
    done: list[SampleBlock] = []
    it = pipeline()
    run(PendingPackets(it, done.append), it, packets({"S1": (180.0, [110.0]), "S2": (180.0, [])}, {}))
    ends_s = {
        name: (max(b.end_ns for b in done if b.stream.station.station == name) - START_NS) / NS for name in ("S1", "S2")
    }
    assert 0 < ends_s["S1"] < 40
    assert 90 < ends_s["S2"] < 110


def test_samples_are_let_go_and_positions_are_not() -> None:
    """Protects the memory of many stations: minutes of samples would be held a second time, beside the ring buffers."""
    done: list[SampleBlock] = []
    it = pipeline()
    hold = PendingPackets(it, done.append)
    blocks = [replace(block, origin=number) for number, block in enumerate(packets({"S1": (180.0, [])}, {}))]
    freed = [weakref.ref(block.samples) for block in blocks[:10]]
    run(hold, it, blocks[:10])
    assert len(hold) == 10
    ends = [(block.origin, block.stream, block.end_ns) for block in blocks]
    for block in blocks[10:]:
        run(hold, it, [block])
    assert [(block.origin, block.stream, block.end_ns) for block in done] == ends[: len(done)]
    assert len(done) > 10
    assert sum(len(block.samples) for block in done) == 0
    del blocks, block
    gc.collect()
    assert all(samples() is None for samples in freed)


def test_a_silent_station_is_held_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[SampleBlock] = []
    it = pipeline()
    hold = PendingPackets(it, done.append)
    run(hold, it, packets({"S1": (5.0, [])}, {}))
    assert done == []
    monkeypatch.setattr(module, "MAX_HELD_S", 0.0)
    monkeypatch.setattr(module, "SWEEP_S", 0.0)
    run(hold, it, packets({"S2": (1.0, [])}, {}))
    assert {block.stream.station.station for block in done} == {"S1", "S2"}
    assert len(hold) == 0


def test_memory_is_bounded_while_the_disk_refuses_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is acknowledged then; when the disk takes messages again, the newest stand for those forgotten."""
    monkeypatch.setattr(module, "MAX_KEPT", 50)
    monkeypatch.setattr(module, "MAX_HELD", 40)
    done: list[SampleBlock] = []
    it = pipeline()
    hold = PendingPackets(it, done.append)
    blocks = packets({"S1": (60.0, []), "S2": (60.0, [])}, {})
    run(hold, it, blocks, stored=False)
    assert len(hold) == 50
    assert done == []
    hold.release()
    assert len(hold) <= 40
    assert {block.stream.seed for block in done} == {block.stream.seed for block in blocks}
