"""What every method learns from and is tried on: the records, their parts, the banks, one work folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.types import LABELS
from quantize.config import BuildConfig
from quantize.data import regions
from quantize.data.bank import UNLABELLED, Bank, labelled_plan, open_bank, synthetic_plan, unlabelled_plan
from quantize.data.records import Record, folds
from quantize.data.trust import apart, is_judged
from quantize.train.fit import Source

FOLDS = 5
FOLD_SEED = 0

Division = Literal["event", "region"]
"""How records are divided: into folds of whole events, or by region."""


@dataclass(frozen=True, slots=True, eq=False)
class Lab:
    """``records`` with a label, those ``unlabelled``, pieces of continuous ``streams``; results go below ``work``.

    A *fold* of None stands for the final network: it learns from the training split and is tried on the validation
    split. Divided by event, folds 0 to 4 are those of the cross-validation over both splits; divided by region, fold i
    leaves out region i of ``left_out``.
    """

    records: Sequence[Record]
    unlabelled: Sequence[Record]
    streams: Sequence[Record]
    config: BuildConfig
    work: Path
    data: Path
    """The data folder, for the tables beside the records."""
    checkpoint: Path | None = None
    """Published weights of PRIME-DP, which take the place of pre-training."""
    landslides: int | None = None
    """How many landslide events are learned from at most, for the learning curve."""
    seed: int = 0
    """Added to the student's seed: another run of the same."""
    by: Division = "event"
    regions: Mapping[str, str] = field(default_factory=dict)
    """Region of each event, for the division by region."""

    @property
    def left_out(self) -> list[str]:
        """The regions that are left out one at a time, in the order of their folds."""
        return regions.left_out([record.row for record in self.records], self.regions)

    @property
    def count(self) -> int:
        """How many folds there are."""
        return FOLDS if self.by == "event" else len(self.left_out)

    @property
    def parts(self) -> NDArray[np.int64]:
        """Part of each record: twice its fold (divided by region: the number of its region, those that are left out
        first), one more in the validation split."""
        rows = [record.row for record in self.records]
        fold = folds(rows, FOLDS, FOLD_SEED) if self.by == "event" else regions.numbers(rows, self.regions)
        return 2 * fold + np.array([row.split == "val" for row in rows], dtype=np.int64)

    def place(self, name: str) -> Path:
        """Folder below ``work`` of something that depends on the division."""
        return self.work / (name if self.by == "event" else f"{name}_regions")

    def bank(self) -> Bank:
        """Windows of the labelled records."""
        settings = self.config.bank
        plan = labelled_plan(
            self.records,
            self.parts,
            settings.labelled,
            preparation=self.config.preparation,
            augmentation=self.config.augmentation,
            seed=settings.seed,
            without=settings.without,
            doubt=settings.doubt,
        )
        return open_bank(self.place("bank"), plan, settings.seed)

    def unlabelled_bank(self) -> Bank | None:
        """Windows of records without a class; None where there are none. Divided by region, a window belongs to that of
        its record."""
        settings = self.config.bank
        if not self.unlabelled or not settings.unlabelled:
            return None
        plan = unlabelled_plan(
            self.unlabelled,
            self._noise_parts(self.unlabelled),
            settings.unlabelled,
            preparation=self.config.preparation,
            augmentation=self.config.augmentation,
            seed=settings.seed + 1,
        )
        return open_bank(self.place("unlabelled"), plan, settings.seed + 1)

    def synthetic_bank(self) -> Bank | None:
        """Windows of the generator's events; None where none are asked for. Divided by region, a window belongs to the
        region whose noise it has."""
        settings = self.config.bank
        if not settings.synthetic:
            return None
        backgrounds = [*self.unlabelled, *self.streams]
        plan = synthetic_plan(
            backgrounds,
            self._noise_parts(backgrounds),
            settings.synthetic,
            preparation=self.config.preparation,
            augmentation=self.config.augmentation,
            seed=settings.seed + 2,
        )
        return open_bank(self.place("synthetic"), plan, settings.seed + 2)

    def _noise_parts(self, backgrounds: Sequence[Record]) -> NDArray[np.int64]:
        """Part of each record without a class: that of its region; none (-1) where records are divided by event."""
        parts = np.full(len(backgrounds), UNLABELLED, dtype=np.int64)
        if self.by == "region":
            order = self.left_out
            for i, record in enumerate(backgrounds):
                region = regions.UNLABELLED.get(record.row.dataset)
                if region in order:
                    parts[i] = 2 * order.index(region)
        return parts

    def held_out(self, fold: int | None) -> NDArray[np.int64]:
        """Indices of the records on which a fold is tried."""
        parts = self.parts
        return np.flatnonzero(parts % 2 == 1 if fold is None else parts // 2 == fold)

    def judged(self, fold: int | None) -> NDArray[np.int64]:
        """Those held out that also share no moment with what the fold learns from, and that are not shown in the
        demonstration; the figures rest on them alone.

        For the final network that goes for what it learns from without a class, too.
        """
        held, learned = self.held_out(fold), self.training(fold)
        if fold is None:
            learned += [*self.unlabelled, *self.streams]
        allowed = np.array([is_judged(self.records[int(i)].row) for i in held], dtype=np.bool_)
        return held[allowed & apart([self.records[int(i)] for i in held], learned)]

    def training(self, fold: int | None) -> list[Record]:
        """The records from which a fold learns."""
        out = set(self.held_out(fold).tolist())
        return [record for i, record in enumerate(self.records) if i not in out]

    def labelled(self, bank: Bank, fold: int | None) -> list[Source]:
        """What a fold learns from, class by class as often as without a limit to the landslides."""
        index = learned_from(bank, fold)
        if self.landslides is None:
            return [Source(bank, index)]
        slides = bank.label[index] == LABELS.index("landslide")
        chosen = self._chosen(np.unique(bank.record[index[slides]]))
        few = np.isin(bank.record[index], chosen)
        share = float(slides.mean())
        return [Source(bank, index[~slides], 1 - share), Source(bank, index[slides & few], share)]

    def _chosen(self, records: NDArray[np.int64]) -> list[int]:
        """Those of ``records`` that belong to the chosen events; a smaller choice is part of every larger one."""
        events = sorted({self.records[int(i)].row.event for i in records})
        np.random.default_rng(self.config.seed).shuffle(events)
        kept = set(events[: self.landslides])
        return [int(i) for i in records if self.records[int(i)].row.event in kept]


def learned_from(bank: Bank, fold: int | None) -> NDArray[np.int64]:
    """Entries of a bank from which a fold learns; those of no part belong to every fold."""
    left_out = bank.part % 2 == 1 if fold is None else bank.part // 2 == fold
    return np.flatnonzero(~left_out | (bank.part < 0))
