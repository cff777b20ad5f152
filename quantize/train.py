"""Training of the student: resumable, logged, reproducible from its seed.

Every batch has a generator of its own, seeded by run, epoch and step, so that a run that was broken off and taken up
again, with or without a second process, sees the same windows.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from agent.dsp.window import Preparation
from agent.errors import ConfigError
from agent.types import LABELS
from quantize.augment import Augmentation, Augmenter, Sampler, batch
from quantize.data import Record
from quantize.student import Student, StudentConfig, build_student, save_student

log = logging.getLogger("quantize.train")

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
T = TypeVar("T")

SMOOTHED = tuple(label != "collapse" for label in LABELS)
"""Labels that share the smoothing mass; collapse, not learned, would only be made likelier by it."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything a run depends on besides the records."""

    epochs: int = 60
    windows_per_epoch: int = 1200
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 2e-2
    warm_up_epochs: float = 2.0
    label_smoothing: float = 0.1
    average: float = 0.995
    """Decay per step of the exponential moving average of the weights, which is the result."""
    seed: int = 0
    preparation: Preparation = field(default_factory=lambda: Preparation(highpass_hz=1.0))
    student: StudentConfig = field(default_factory=StudentConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)


def read_config(path: Path) -> TrainConfig:
    """A YAML file with keys of ``TrainConfig``; what it leaves out keeps its default.

    Raises:
        ConfigError: the file is no mapping, or has a key that is not known.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "give a YAML file, see configs/quantize/") from error
    return _build(TrainConfig, content or {}, str(path))


def _build(cls: type[T], content: Any, where: str) -> T:
    if not isinstance(content, dict):
        raise ConfigError(f"{where} is no mapping", "write `key: value` lines")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}", f"known keys: {', '.join(known)}")
    default = cls()
    values: dict[str, Any] = {}
    for name, value in content.items():
        inner = getattr(default, name)
        if is_dataclass(inner):
            values[name] = _build(type(inner), value, f"{where}: {name}")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def train(
    records: Sequence[Record], config: TrainConfig, work: Path, *, ahead: bool = False, stop_after: int | None = None
) -> Path:
    """Train on ``records`` and return the checkpoint ``work/student.pt`` (averaged weights).

    State is kept in ``work/state.pt`` after each epoch and a later call goes on from there; a finished run returns at
    once. ``ahead`` prepares windows in a second process; ``stop_after`` ends this call after that many epochs of its
    own, unfinished.

    Raises:
        ConfigError: ``work`` holds a run of another configuration.
    """
    work.mkdir(parents=True, exist_ok=True)
    _claim(work, config, records)
    done = work / "student.pt"
    if done.is_file():
        return done
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    model, average = build_student(config.student), build_student(config.student)
    average.load_state_dict(model.state_dict())
    optimiser = _optimiser(model, config)
    state_path, first = work / "state.pt", 0
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["epoch"]
    steps = max(1, config.windows_per_epoch // config.batch)
    last = config.epochs if stop_after is None else min(config.epochs, first + stop_after)
    with _batches(records, config, steps, range(first, last), ahead) as batches:
        for epoch in range(first, last):
            began = time.monotonic()
            torch.manual_seed(config.seed * 100_003 + epoch)
            loss, accuracy = _epoch(model, average, optimiser, config, batches=batches, epoch=epoch, steps=steps)
            line = {"epoch": epoch, "loss": round(loss, 4), "accuracy": round(accuracy, 4)}
            log.info("%s %.1f s", line, time.monotonic() - began)
            with (work / "log.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
            _save_state(state_path, model, average, optimiser, epoch + 1)
    if last == config.epochs:
        save_student(done, average, config.student, {"train": json.dumps(asdict(config)), "records": len(records)})
    return done


def _claim(work: Path, config: TrainConfig, records: Sequence[Record]) -> None:
    """Refuse to go on with a run that was something else."""
    claim = json.dumps({"config": asdict(config), "records": sorted(r.row.name for r in records)}, indent=1)
    path = work / "run.json"
    if path.is_file() and path.read_text(encoding="utf-8") != claim:
        raise ConfigError(
            f"{work} holds a run of another configuration or of other records", "name another --work folder"
        )
    path.write_text(claim, encoding="utf-8")


def _optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _rate(config: TrainConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine to zero; ``progress`` in epochs."""
    if progress < config.warm_up_epochs:
        return config.learning_rate * (progress + 0.01) / config.warm_up_epochs
    share = (progress - config.warm_up_epochs) / max(1e-9, config.epochs - config.warm_up_epochs)
    return config.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, share))))


def _epoch(
    model: Student,
    average: Student,
    optimiser: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    batches: Iterator[Batch],
    epoch: int,
    steps: int,
) -> tuple[float, float]:
    model.train()
    losses, hits = 0.0, 0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _rate(config, epoch + step / steps)
        windows, labels = next(batches)
        x, y = torch.from_numpy(windows)[:, :, None], torch.from_numpy(labels)
        logits = model(x)
        loss = smoothed_cross_entropy(logits, y, config.label_smoothing)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        _move_average(average, model, min(config.average, (1 + epoch * steps + step) / (10 + epoch * steps + step)))
        losses += float(loss.detach())
        hits += int((logits.argmax(1) == y).sum())
    return losses / steps, hits / (steps * config.batch)


def smoothed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Mean cross-entropy against ``1 - smoothing`` on the label and the rest spread over the labels in ``SMOOTHED``."""
    mask = torch.tensor(SMOOTHED, dtype=logits.dtype)
    log_p = torch.log_softmax(logits, dim=1)
    spread = (log_p * (mask / mask.sum())).sum(1)
    return -((1 - smoothing) * log_p.gather(1, labels[:, None])[:, 0] + smoothing * spread).mean()


@torch.no_grad()
def _move_average(average: Student, model: Student, decay: float) -> None:
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.dtype.is_floating_point:
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


def _save_state(path: Path, model: Student, average: Student, optimiser: torch.optim.Optimizer, epoch: int) -> None:
    scratch = path.with_suffix(".tmp")
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "epoch": epoch,
    }
    torch.save(state, scratch)
    scratch.replace(path)


class _Maker:
    """Makes the batch of an (epoch, step); picklable state for a worker is inherited by fork."""

    def __init__(self, records: Sequence[Record], config: TrainConfig) -> None:
        self._records, self._config = records, config
        self._augmenter = Augmenter(records, config.preparation, config.augmentation)
        self._sampler = Sampler(records)

    def __call__(self, key: tuple[int, int]) -> Batch:
        rng = np.random.default_rng((self._config.seed, *key))
        return batch(self._augmenter, self._sampler, self._records, self._config.batch, rng)


@contextmanager
def _batches(
    records: Sequence[Record], config: TrainConfig, steps: int, epochs: range, ahead: bool
) -> Iterator[Iterator[Batch]]:
    keys = [(epoch, step) for epoch in epochs for step in range(steps)]
    maker = _Maker(records, config)
    if not ahead:
        yield map(maker, keys)
        return
    context = multiprocessing.get_context("fork")
    ready: multiprocessing.Queue[Batch] = context.Queue(maxsize=4)
    process = context.Process(target=_work, args=(maker, keys, ready), daemon=True)
    process.start()
    try:
        yield iter(ready.get, None)
    finally:
        process.terminate()
        process.join()


def _work(maker: _Maker, keys: Sequence[tuple[int, int]], ready: Any) -> None:
    for key in keys:
        ready.put(maker(key))
