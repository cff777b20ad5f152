"""Hostile input to files and to the simulator's settings: samples that the pipeline takes, or a reason."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_support import fuzz
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from records_support import counts, trace, write

from agent.config_sources import SimulatorConfig
from agent.errors import SourceError
from agent.sources import SourceProblem
from agent.sources.archive import ArchiveSource
from agent.sources.simulator import LIMIT, open_simulator
from agent.types import MAX_BLOCK_S


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@cache
def sound(folder: Path) -> bytes:
    """Three channels, 512-byte records."""
    traces = [trace(counts(600, i), f"HH{c}") for i, c in enumerate("ENZ")]
    return write(folder / "sound.mseed", *traces, reclen=512).read_bytes()


CHANGE = st.tuples(st.integers(0, 2**16), st.binary(max_size=16))
PLAIN = st.one_of(st.binary(max_size=700), st.sampled_from([b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"BZh9", b"000001D "]))


@fuzz(60)
@given(st.data())
def test_any_file_is_read_or_named(folder: Path, data: st.DataObject) -> None:
    """A damaged miniSEED file, cut anywhere, or any bytes at all."""
    whole = bytearray(sound(folder))
    if data.draw(st.booleans()):
        for at, new in data.draw(st.lists(CHANGE, min_size=1, max_size=12)):
            begin = at % len(whole)
            whole[begin : begin + len(new)] = new
        content = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    else:
        content = data.draw(PLAIN) + data.draw(st.binary(max_size=300))
    path = folder / "any.mseed"
    path.write_bytes(content)
    problems: list[SourceProblem] = []
    seen = 0
    try:
        for block in ArchiveSource([path], 1.0, on_problem=problems.append).blocks():
            assert 0 < len(block.samples) <= MAX_BLOCK_S * block.rate_hz + 1
            assert block.rate_hz > 0
            seen += len(block.samples)
    except SourceError as error:
        assert str(path) in error.message
        assert not seen
    assert all(problem.message for problem in problems)
    assert seen <= 200 * max(1, len(content))


NUMBER = st.one_of(st.floats(), st.integers(-10, 10_000), st.floats(0, 100), st.sampled_from([0, 1, 20, 100, 1e-9]))
RATES = ("slopequakes", "rockfalls", "slides", "blasts", "earthquakes")
FAULTS = ("gaps", "clock_steps", "spikes", "dead_channels", "stalls")
SETTINGS = st.fixed_dictionaries(
    {"kind": st.just("simulator")},
    optional={
        "seed": st.one_of(NUMBER, st.integers(0, 2**32 - 1)),
        "start": st.one_of(st.text(max_size=8), st.sampled_from(["2026-03-01T00:00:00Z", "1970-01-01", "9999-12-31"])),
        "hours": NUMBER,
        "speed": st.just(0.0) | NUMBER,
        "stations": st.integers(-1, 4) | st.just(64) | NUMBER,
        "rate_hz": NUMBER | st.floats(20, 200),
        "packet_s": NUMBER | st.floats(0.01, 2),
        "noise_counts": NUMBER,
        "rates": st.dictionaries(st.sampled_from([f"{name}_per_hour" for name in RATES]) | st.text(max_size=4), NUMBER),
        "faults": st.dictionaries(st.sampled_from([f"{name}_per_hour" for name in FAULTS]), NUMBER),
    },
)


@fuzz(60)
@given(SETTINGS)
def test_any_settings_of_the_simulator_are_refused_or_played(given_settings: dict[str, Any]) -> None:
    try:
        config = SimulatorConfig.model_validate(given_settings)
    except ValidationError:
        return
    source = open_simulator(config.model_copy(update={"speed": 0.0}), "XX", "SIM")
    for block in itertools.islice(source.blocks(), 3):
        assert 0 < len(block.samples) <= MAX_BLOCK_S * block.rate_hz + 1
        assert block.rate_hz == config.rate_hz
        assert np.abs(block.samples).max() <= LIMIT
