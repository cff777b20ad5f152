"""Hostile input to files and to the simulator's settings: samples that the pipeline takes, or a reason."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from fuzz_support import awkward_float, awkward_text, fuzz, junk, spoilt
from pydantic import ValidationError
from records_support import counts, trace, write

from agent.config.sources import SimulatorConfig
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


HEADS = (b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"BZh9", b"000001D ", b"")


@fuzz(60)
def test_any_file_is_read_or_named(folder: Path, chance: Random) -> None:
    """A damaged miniSEED file, cut anywhere, or any bytes at all."""
    content = spoilt(chance, sound(folder)) if chance.randrange(2) else chance.choice(HEADS) + junk(chance, 700)
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


RATES = ("slopequakes", "rockfalls", "slides", "blasts", "earthquakes")
FAULTS = ("gaps", "clock_steps", "spikes", "dead_channels", "stalls")
STARTS = ("2026-03-01T00:00:00Z", "1970-01-01", "9999-12-31", "0001-01-01")


def number(chance: Random) -> float | int | str:
    """What may stand for a number in a file; one in three is sensible."""
    return chance.choice(
        (chance.uniform(0, 100), chance.randint(-10, 10_000), chance.choice((0, 1, 20, 100, 2**32 - 1)),
         awkward_float(chance), awkward_text(chance, 3))
    )  # fmt: skip


def settings_of(chance: Random) -> dict[str, Any]:
    sensible: dict[str, Any] = {
        "seed": chance.randint(0, 2**32 - 1),
        "start": chance.choice(STARTS),
        "hours": chance.uniform(0.001, 10),
        "speed": 0.0,
        "stations": chance.choice((1, 2, 64)),
        "rate_hz": chance.uniform(20, 1000),
        "packet_s": chance.uniform(0.01, 2),
        "noise_counts": chance.uniform(1, 1e6),
        "rates": {f"{name}_per_hour": chance.uniform(0, 3600) for name in RATES if chance.randrange(2)},
        "faults": {f"{name}_per_hour": chance.uniform(0, 3600) for name in FAULTS if chance.randrange(2)},
    }
    found = {name: value for name, value in sensible.items() if chance.randrange(2)}
    for name in chance.sample(sorted(found), chance.randrange(2) if found else 0):
        if isinstance(found[name], dict):
            found[name][chance.choice((awkward_text(chance, 4), "gaps_per_hour", "slides_per_hour"))] = number(chance)
        else:
            found[name] = number(chance)
    return {"kind": "simulator", **found}


@fuzz(60)
def test_any_settings_of_the_simulator_are_refused_or_played(chance: Random) -> None:
    given_settings = settings_of(chance)
    try:
        config = SimulatorConfig.model_validate(given_settings)
    except ValidationError:
        return
    source = open_simulator(config.model_copy(update={"speed": 0.0}), "XX", "SIM")
    for block in itertools.islice(source.blocks(), 3):
        assert 0 < len(block.samples) <= MAX_BLOCK_S * block.rate_hz + 1
        assert block.rate_hz == config.rate_hz
        assert np.abs(block.samples).max() <= LIMIT
