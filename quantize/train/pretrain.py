"""Pre-training of PRIME-DP without the published weights: phases and masked waveforms of every real record.

As the original was trained, on what there is: the phase decoder learns the arrivals that a public picker of the same
authors (PnSN v3) and analysts found, the waveform decoder learns to fill in masked stretches. No event class enters.
Windows of 30.72 s, a length that the authors use too, cost a third of full ones.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import signal

from agent.errors import DataError
from agent.types import WINDOW_RATE_HZ, parse_ns
from quantize.data.records import Record, read_csv
from quantize.data.views import main_component
from quantize.train.fit import Count
from quantize.train.hardware import device, mixed_precision
from quantize.train.loop import Pace, claim, train
from quantize.train.prime_dp import DOWNSAMPLING, PHASES, PrimeDP

log = logging.getLogger("quantize.train.pretrain")

Arrivals = dict[str, list[tuple[int, int, float]]]
"""By trace name: phase (index in ``PHASES``), nanoseconds, how sure the picker is (0..1)."""

_LEAST = 0.1
_SETTLE = 400
"""Samples before a window that settle its filter."""


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """``windows``: how many are drawn in all, each of ``length`` samples. ``masked``: share of the input that is
    hidden. ``wave``: weight of the waveform's squared error beside the cross-entropy of the phases."""

    variant: str = "tinny"
    windows: Count = 16_000
    length: Count = 3072
    batch: Count = 16
    learning_rate: float = 6e-4
    weight_decay: float = 1e-2
    warm_up: float = 0.05
    masked: float = 0.3
    wave: float = 4.0
    seed: int = 0
    threads: int = 1
    bfloat16: bool = True


def read_arrivals(root: Path) -> Arrivals:
    """The picks of ``root/soft_labels/picks.csv``: those on three components where there are any, else the vertical's;
    none where there is no table, so that the masked waveforms alone are learned.

    Raises:
        DataError: the table has a phase or a number that is not known.
    """
    table = root / "soft_labels" / "picks.csv"
    if not table.is_file():
        log.warning("%s does not exist: pre-training without phases", table)
        return {}
    known = {phase: number for number, phase in enumerate(PHASES) if number}
    found: dict[str, dict[str, list[tuple[int, int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line, row in read_csv(table, ("trace_name", "pick_time", "phase", "probability", "input")):
        try:
            pick = (known[row["phase"]], parse_ns(row["pick_time"]), float(row["probability"]))
        except (KeyError, ValueError, DataError) as error:
            hint = f"phases are {', '.join(known)}, times ISO 8601, probabilities numbers"
            raise DataError(f"{table}:{line}: {error}", hint) from None
        if pick[2] >= _LEAST:
            found[row["trace_name"]][row["input"]].append(pick)
    return {name: views.get("3c") or next(iter(views.values())) for name, views in found.items()}


def pretrain(
    records: Sequence[Record], arrivals: Arrivals, config: PretrainConfig, work: Path, *, save_every: int = 100
) -> PrimeDP:
    """Train on ``records`` (labels are not looked at) and return the network; resumable like ``fit``."""
    claim(work, repr((config, len(records))))
    torch.manual_seed(config.seed)

    def loss(model: PrimeDP, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        x, phases, hidden = (part.to(device()) for part in batch)
        phase, wave = losses(model, x, phases, hidden, bfloat16=config.bfloat16)
        return {"phase": phase, "wave": config.wave * wave}

    pace = Pace(
        steps=max(1, config.windows // config.batch),
        learning_rate=config.learning_rate,
        warm_up=config.warm_up,
        clip=1.0,
        seed=config.seed,
        threads=config.threads,
        save_every=save_every,
    )
    network = PrimeDP(config.variant)
    groups = [{"params": list(network.parameters()), "weight_decay": config.weight_decay}]
    return train(network, groups, Windows(records, arrivals, config).batch, loss, pace=pace, done=work / "prime_dp.pt")


def losses(
    model: PrimeDP, x: torch.Tensor, phases: torch.Tensor, hidden: torch.Tensor, *, bfloat16: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy of the phases, and squared error of the waveform where the input was hidden.

    ``x`` ``[N, 3, T]`` complete windows, ``phases`` ``[N, 5, T]`` soft targets, ``hidden`` ``[N, T]`` true where the
    network sees zero.
    """
    seen = x * ~hidden[:, None]
    with mixed_precision(bfloat16):
        wave_tokens = model.hidden(seen)[:, :, 6:]
        phase, wave = model.decoder_phase(wave_tokens), model.decoder_wave(wave_tokens)
    # Arrivals are a hundredth of the samples; unweighted, "background everywhere" is too good an answer.
    weight = 1 + 15 * phases[:, 1:].sum(1)
    cross_entropy = -(phases * torch.log_softmax(phase.float(), dim=1)).sum(1)
    error = (wave.float().tanh() - x) ** 2
    share = hidden[:, None].float().expand_as(error)
    return (weight * cross_entropy).mean(), (error * share).sum() / share.sum().clamp(min=1)


class Windows:
    """Draws windows with their targets: any place of any record, more often around a pick."""

    def __init__(self, records: Sequence[Record], arrivals: Arrivals, config: PretrainConfig) -> None:
        self._config = config
        self._records = [record for record in records if record.data.shape[1] >= config.length // 2]
        if not self._records:
            raise DataError("no record is long enough to pre-train on", f"{config.length / 200:.0f} s are needed")
        self._arrivals = [
            [(phase, record.index_of(ns), sure) for phase, ns, sure in arrivals.get(record.row.name, ())]
            for record in self._records
        ]
        self._with = np.array([i for i, picks in enumerate(self._arrivals) if picks], dtype=np.int64)
        rng = np.random.default_rng(config.seed)
        # High-passed like the station's windows; the low-pass corners are those of the training windows.
        self._bands = [
            signal.butter(
                int(rng.integers(2, 5)),
                [rng.uniform(0.8, 2.0), np.exp(rng.uniform(np.log(14), np.log(48)))],
                "bandpass",
                fs=WINDOW_RATE_HZ,
                output="sos",
            )
            for _ in range(64)
        ]
        self._plain = signal.butter(4, 1.0, "highpass", fs=WINDOW_RATE_HZ, output="sos")
        self._bell = np.exp(-0.5 * (np.arange(-40, 41) / 12) ** 2).astype(np.float32)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Windows ``[N, 3, T]``, phases ``[N, 5, T]`` (they add up to 1), and which samples are hidden ``[N, T]``."""
        rng = np.random.default_rng((self._config.seed, 5, step))
        made = [self._window(rng) for _ in range(self._config.batch)]
        x, phases = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
        hidden = np.stack([self._hidden(rng) for _ in made])
        return x, phases, torch.from_numpy(hidden)

    def _window(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        length = self._config.length
        at_pick = len(self._with) > 0 and rng.random() < 0.65
        index = int(rng.choice(self._with)) if at_pick else int(rng.integers(len(self._records)))
        record, picks = self._records[index], self._arrivals[index]
        count = record.data.shape[1]
        if at_pick:
            start = picks[int(rng.integers(len(picks)))][1] - int(rng.integers(length // 10, length * 4 // 5))
        else:
            start = int(rng.integers(-length // 4, max(1, count - length // 2)))
        x = np.zeros((3, length), dtype=np.float32)
        low, high = max(0, start), min(count, start + length)
        if high - low > 100:
            before = max(0, low - _SETTLE)
            raw = self._components(record, record.data[:, before:high], rng)
            band = self._bands[int(rng.integers(len(self._bands)))] if rng.random() < 0.7 else self._plain
            y = signal.sosfilt(band, raw - raw[:, :1], axis=1)[:, low - before :]
            y -= y.mean(axis=1, keepdims=True)
            peak = np.abs(y).max(axis=1, keepdims=True)
            x[:, low - start : high - start] = rng.choice((-1.0, 1.0)) * y / np.where(peak > 0, peak, 1)
            if rng.random() < 0.3:
                x += rng.standard_normal(x.shape).astype(np.float32) * np.float32(np.exp(rng.uniform(-7, -3)))
        return x, self._targets(picks, start)

    def _components(self, record: Record, x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        choice = rng.random()
        if choice < 0.5 or not all(record.present):
            return np.repeat(x[main_component(record)][None], 3, axis=0)
        if choice < 0.6:
            return x * np.array([[0.0], [0.0], [1.0]], dtype=np.float32)
        return x

    def _targets(self, picks: list[tuple[int, int, float]], start: int) -> NDArray[np.float32]:
        length, half = self._config.length, len(self._bell) // 2
        out = np.zeros((len(PHASES), length + 2 * half), dtype=np.float32)
        for phase, sample, sure in picks:
            at = sample - start
            if -half < at < length + half - 1:
                low = max(0, at)
                part = self._bell[low - at :][: out.shape[1] - low] * np.float32(min(1.0, 2 * sure))
                out[phase, low : low + len(part)] = np.maximum(out[phase, low : low + len(part)], part)
        out = out[:, half : half + length]
        total = out[1:].sum(axis=0)
        out[1:] /= np.maximum(total, 1)
        out[0] = 1 - out[1:].sum(axis=0)
        return out

    def _hidden(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        tokens = self._config.length // DOWNSAMPLING
        hidden = np.zeros(tokens, dtype=bool)
        while hidden.mean() < self._config.masked:
            start = int(rng.integers(tokens))
            hidden[start : start + int(rng.integers(1, 5))] = True
        return np.repeat(hidden, DOWNSAMPLING)
