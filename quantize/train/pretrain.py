"""Pre-training of PRIME-DP without the published weights: phases and masked waveforms of every real record.

As the original was trained, on what there is: the phase decoder learns the arrivals that a public picker of the same
authors (PnSN v3) and analysts found, the waveform decoder learns to fill in masked stretches. No event class enters.
Windows of 30.72 s, a length that the authors use too, cost a third of full ones.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import nn

from agent.atomic import replacing
from agent.errors import DataError
from agent.types import WINDOW_RATE_HZ, parse_ns
from quantize.data.records import Record, read_csv
from quantize.data.views import main_component
from quantize.train.fit import Count, claim
from quantize.train.hardware import ahead, device, mixed_precision
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
    """The picks of ``root/soft_labels/picks.csv``: those on three components where there are any, else the vertical's.

    Raises:
        DataError: the table is missing or has a phase or a number that is not known.
    """
    table = root / "soft_labels" / "picks.csv"
    if not table.is_file():
        raise DataError(f"{table} does not exist", "pre-training needs the table of picks beside the records")
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
    work.mkdir(parents=True, exist_ok=True)
    claim(work, repr((config, len(records))))
    torch.manual_seed(config.seed)
    model = PrimeDP(config.variant)
    done = work / "prime_dp.pt"
    if done.is_file():
        model.load_state_dict(torch.load(done, weights_only=True))
        return model.eval()
    torch.set_num_threads(config.threads)
    model.to(device())
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state_path, first = work / "state.pt", 0
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True, map_location=device())
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = int(state["step"])
    maker = Windows(records, arrivals, config)
    steps = max(1, config.windows // config.batch)
    sums, began = np.zeros(2), time.monotonic()
    model.train()
    for step, batch in enumerate(ahead(maker.batch, range(first, steps)), first):
        torch.manual_seed(config.seed * 1_000_003 + step)
        progress = step / steps
        for group in optimiser.param_groups:
            warm = min(1.0, (progress + 1e-3) / config.warm_up)
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))
        x, phases, hidden = (part.to(device()) for part in batch)
        phase_loss, wave_loss = losses(model, x, phases, hidden, bfloat16=config.bfloat16)
        optimiser.zero_grad()
        (phase_loss + config.wave * wave_loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        sums += (float(phase_loss.detach()), float(wave_loss.detach()))
        if (step + 1) % save_every == 0 or step + 1 == steps:
            phase, wave = (sums / (step % save_every + 1)).tolist()
            line = {"step": step + 1, "phase": round(phase, 5), "wave": round(wave, 5)}
            log.info("pre-training, of %d: %s %.0f s", steps, line, time.monotonic() - began)
            with (work / "log.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
            sums[:] = 0
            content = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            _save(state_path, content)
    model.cpu()
    _save(done, model.state_dict())
    state_path.unlink(missing_ok=True)
    return model.eval()


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


def _save(path: Path, content: object) -> None:
    with replacing(path) as file:
        torch.save(content, file)
