"""A bank of augmented windows, made once and shared by every network, fold and seed.

Making a training window costs several times what a small network needs to learn from it. In a bank all models see the
same windows, which also makes their comparison fair. A window takes its added noise from records of its own part (fold
and split) only, so that nothing of a part that is left out reaches a network through the noise.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.atomic import ANYONE, replace_file
from agent.dsp.window import Preparation
from agent.errors import DataError
from agent.types import LABELS, WINDOW_SAMPLES
from quantize.data.augment import Augmentation, Augmenter, Sampler
from quantize.data.generator import as_record, generate
from quantize.data.records import Record
from quantize.data.signals import background
from quantize.data.views import main_component
from quantize.train.hardware import processors

log = logging.getLogger("quantize.data.bank")

UNLABELLED = -1
_CHUNK = 256
_REAL_NOISE = 0.9
"""Share of the generator's windows whose noise is made from a real record's."""

Maker = Callable[[int, np.random.Generator], NDArray[np.float32]]
"""Makes the window ``[3, 10240]`` of a record's index."""


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """``windows`` float16 ``[n, 3, 10240]`` (mapped from disk), the record each came from, its label index (-1: none)
    and its part: windows of one part share records with no other part."""

    windows: NDArray[np.float16]
    record: NDArray[np.int64]
    label: NDArray[np.int64]
    part: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.record)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a bank is made of: for every window the record's index, its label, its part, and how to make it."""

    record: NDArray[np.int64]
    label: NDArray[np.int64]
    part: NDArray[np.int64]
    make: Maker


def labelled_plan(
    records: Sequence[Record],
    parts: NDArray[np.int64],
    count: int,
    *,
    preparation: Preparation,
    augmentation: Augmentation,
    seed: int,
    without: Sequence[str] = (),
    doubt: bool = True,
) -> Plan:
    """``count`` draws of ``Sampler`` over ``records``, of which record i belongs to part ``parts[i]``; records of the
    data sets ``without`` are not drawn, those of doubtful labels less often with ``doubt``."""
    chosen = np.flatnonzero([record.row.dataset not in without for record in records])
    sampler, rng = Sampler([records[int(i)] for i in chosen], doubt=doubt), np.random.default_rng((seed, 0))
    drawn = chosen[np.array([sampler.draw(rng) for _ in range(count)], dtype=np.int64)]
    makers, place = {}, np.zeros(len(records), dtype=np.int64)
    for part in np.unique(parts):
        members = np.flatnonzero(parts == part)
        place[members] = np.arange(len(members))
        makers[int(part)] = Augmenter([records[int(i)] for i in members], preparation, augmentation)

    def make(index: int, rng: np.random.Generator) -> NDArray[np.float32]:
        return makers[int(parts[index])].window(int(place[index]), rng)

    labels = np.array([LABELS.index(record.row.label) for record in records], dtype=np.int64)
    return Plan(drawn, labels[drawn], parts[drawn], make)


def unlabelled_plan(
    records: Sequence[Record],
    parts: NDArray[np.int64],
    count: int,
    *,
    preparation: Preparation,
    augmentation: Augmentation,
    seed: int,
) -> Plan:
    """``count`` windows of records without a class, every record alike; record i belongs to ``parts[i]``."""
    drawn = np.random.default_rng((seed, 0)).integers(len(records), size=count).astype(np.int64)
    augmenter = Augmenter(records, preparation, augmentation)
    return Plan(drawn, np.full(count, UNLABELLED, dtype=np.int64), parts[drawn], augmenter.window)


SYNTHETIC_SHARES = {"earthquake": 0.2, "blast": 0.25, "collapse": 0.1, "landslide": 0.3, "noise": 0.15}
"""Share of each class among the generator's windows: more of what real records lack."""


def synthetic_plan(
    backgrounds: Sequence[Record],
    parts: NDArray[np.int64],
    count: int,
    *,
    preparation: Preparation,
    augmentation: Augmentation,
    seed: int,
) -> Plan:
    """``count`` windows, each of an event of its own from the generator, on noise like that before ``backgrounds``
    (records without a class, so that no fold's noise is among it); a window is of its background's part in ``parts``,
    of none where its noise is made up."""
    rng = np.random.default_rng((seed, 0))
    labels = rng.choice(len(LABELS), size=count, p=[SYNTHETIC_SHARES[label] for label in LABELS])
    noise = np.full(count, UNLABELLED, dtype=np.int64)
    if backgrounds:
        real = rng.random(count) < _REAL_NOISE
        noise[real] = rng.integers(len(backgrounds), size=int(real.sum()))
    part = np.where(noise >= 0, np.append(parts, UNLABELLED)[noise], UNLABELLED)

    def make(index: int, rng: np.random.Generator) -> NDArray[np.float32]:
        quiet = None
        if noise[index] >= 0:
            other = backgrounds[int(noise[index])]
            quiet = background(other.data[main_component(other)], None)
        made = as_record(generate(rng, LABELS[labels[index]], quiet), index)
        return Augmenter([made], preparation, augmentation).window(0, rng)

    return Plan(np.arange(count), labels.astype(np.int64), part, make)


def open_bank(folder: Path, plan: Plan, seed: int) -> Bank:
    """The bank in ``folder``, made or completed where it is not whole; window i depends on ``seed`` and i alone.

    Raises:
        DataError: the folder holds a bank of another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = len(plan.record)
    _claim(folder, plan, seed)
    path, progress = folder / "windows.npy", folder / "progress.json"
    done = json.loads(progress.read_text(encoding="utf-8")) if progress.is_file() else 0
    shape = (count, 3, WINDOW_SAMPLES)
    if done < count:
        mode = "r+" if done else "w+"
        windows = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=None if done else shape)
        del windows
        # Forked, so that the records are there without a copy. Chunks come back in order: what is noted is on disk.
        with multiprocessing.get_context("fork").Pool(processors(), _take, (path, plan, seed)) as pool:
            for stop in pool.imap(_fill, range(done, count, _CHUNK)):
                replace_file(progress, json.dumps(stop).encode(), mode=ANYONE, durable=False)
                if (stop // _CHUNK) % 20 == 0:
                    log.info("%s: %d of %d windows", folder, stop, count)
    return Bank(np.load(path, mmap_mode="r"), plan.record, plan.label, plan.part)


_task: tuple[Path, Plan, int]


def _take(path: Path, plan: Plan, seed: int) -> None:
    global _task  # noqa: PLW0603 - a worker has one task in its life
    _task = (path, plan, seed)


def _fill(start: int) -> int:
    """Make the chunk of windows from ``start`` on, and return where the next one begins."""
    path, plan, seed = _task
    windows = np.lib.format.open_memmap(path, mode="r+")
    stop = min(start + _CHUNK, len(plan.record))
    for i in range(start, stop):
        windows[i] = plan.make(int(plan.record[i]), np.random.default_rng((seed, 1, i)))
    windows.flush()
    return stop


def _claim(folder: Path, plan: Plan, seed: int) -> None:
    claim = {
        "seed": seed,
        "count": len(plan.record),
        "sum": int(np.dot(plan.record % 65_537, np.arange(len(plan.record)) % 257)),
    }
    path = folder / "plan.json"
    if not path.is_file():
        replace_file(path, json.dumps(claim).encode(), mode=ANYONE)
    elif json.loads(path.read_text(encoding="utf-8")) != claim:
        raise DataError(f"{folder} holds a bank of other records or another seed", "name another --work folder")
