"""Pre-training sees arrivals where the picker found them, hides what it asks for, and looks at no label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import learning_support
import numpy as np
import pytest
import torch
from quantize_support import write_folder

from agent.errors import DataError
from quantize.data.records import Record, load_records, read_streams, read_table, read_unlabelled
from quantize.train.pretrain import PretrainConfig, Windows, losses, pretrain, read_arrivals
from quantize.train.prime_dp import PrimeDP

pytestmark = learning_support.TRAIN

TINY = PretrainConfig(variant="picker", windows=64, batch=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), events=3)


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return load_records(read_table(folder))


def test_phase_targets_stand_where_the_motion_begins(folder: Path, records: list[Record]) -> None:
    """The made records burst at their pick: energy before the target's peak is small against that after it."""
    strong = [record for record in records if record.row.label == "earthquake"]
    x, phases, _ = Windows(strong, read_arrivals(folder), TINY).batch(0)
    assert torch.allclose(phases.sum(1), torch.ones(phases.shape[0], phases.shape[2]), atol=1e-5)
    seen = 0
    for window, target in zip(x[:, 2], phases[:, 1], strict=True):
        at = int(target.argmax())
        if target[at] > 0.9 and 300 < at < len(window) - 300:
            seen += 1
            before, after = window[at - 250 : at - 50].abs().max(), window[at + 5 : at + 200].abs().max()
            assert after > 3 * before
    assert seen >= 3


def test_only_hidden_samples_count_for_the_waveform(folder: Path, records: list[Record]) -> None:
    x, phases, hidden = Windows(records, read_arrivals(folder), TINY).batch(1)
    assert 0.29 < hidden.float().mean() < 0.45
    torch.manual_seed(0)
    model = PrimeDP("picker").eval()
    other = torch.where(hidden[:, None], x + 5, x)
    with torch.no_grad():
        phase, wave = losses(model, x, phases, hidden, bfloat16=False)
        phase_too, wave_too = losses(model, other, phases, hidden, bfloat16=False)
        _, wave_none = losses(model, other, phases, torch.zeros_like(hidden), bfloat16=False)
    assert torch.equal(phase, phase_too), "the network must not see what is hidden"
    assert wave_too > wave + 1
    assert wave_none == 0


def test_it_learns_and_is_not_trained_twice(folder: Path, records: list[Record], tmp_path: Path) -> None:
    config = replace(TINY, windows=320, length=1024, learning_rate=2e-3)
    first = pretrain(records, read_arrivals(folder), config, tmp_path, save_every=10).state_dict()
    values = [float(line.split('"phase": ')[1].split(",")[0]) for line in (tmp_path / "log.jsonl").open()]
    assert values[-1] < 0.8 * values[0]
    again = pretrain(records, read_arrivals(folder), config, tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(
    folder: Path, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, length=1024)
    whole = pretrain(records, read_arrivals(folder), config, tmp_path / "whole", save_every=2).state_dict()
    calls, batch = iter([True] * 5), Windows.batch

    def broken_off(self: Windows, rng: np.random.Generator) -> Any:
        if next(calls, False):
            return batch(self, rng)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Windows, "batch", broken_off)
        pretrain(records, read_arrivals(folder), config, tmp_path / "parts", save_every=2)
    assert (tmp_path / "parts" / "state.pt").is_file(), "broken off too early to say anything"
    parts = pretrain(records, read_arrivals(folder), config, tmp_path / "parts", save_every=2).state_dict()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_table_of_picks_that_lies_is_refused(folder: Path, tmp_path: Path) -> None:
    assert read_arrivals(tmp_path) == {}, "without a table there are no phases to learn"
    (tmp_path / "soft_labels").mkdir()
    table = tmp_path / "soft_labels" / "picks.csv"
    head = "trace_name,pick_time,phase,probability,input\n"
    for line, what in (("a,2020-01-01T00:00:00Z,Px,0.5,3c", "Px"), ("a,then,Pg,0.5,3c", "then")):
        table.write_text(head + line + "\n")
        with pytest.raises(DataError, match=r"picks\.csv:2.*" + what):
            read_arrivals(tmp_path)


def test_a_folder_without_unlabelled_records_has_none(folder: Path) -> None:
    assert read_unlabelled(folder) == []
    assert read_streams(folder) == []


def test_streams_are_cut_into_pieces_of_one_station() -> None:
    from quantize.data.records import default_root

    root = default_root()
    if root is None or not (root / "streams").is_dir():
        pytest.skip("no continuous streams at hand: set TALUS_DATA")
    pieces = read_streams(root)
    luhu = [piece for piece in pieces if piece.row.dataset == "rocknet_2020_088_13"]
    assert {piece.data.shape for piece in pieces} == {(3, 16_000)}
    assert len(luhu) == 5 * 30
    assert all(piece.present == (True, True, True) and piece.data.any(axis=1).all() for piece in luhu)
