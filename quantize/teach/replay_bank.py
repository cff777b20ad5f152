"""Make the replay bank of a bundle: features of records in the views and lengths that verdicts are given in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agent.inference.bundle import CPU_MODEL, Bundle
from agent.types import LABELS
from quantize.data.records import LENGTHS_S, Record
from quantize.data.trust import is_judged, trust
from quantize.data.views import VIEWS, view_windows
from quantize.teach.head import Features
from quantize.teach.replay import Replay
from quantize.teach.taught import add_replay

LEARNED, JUDGED = 165, 75
"""Examples of a class that layers are fitted to, and that they are judged by."""
_EVENTS = 2
"""At most so many examples of one record."""


def replay_bank(bundle: Bundle, records: Sequence[Record], regions: Mapping[str, str]) -> Replay:
    """The bank of a bundle's network: the training split is learned from, the validation split judged by."""
    network, rng = Features(bundle.file(CPU_MODEL)), np.random.default_rng(0)
    numbers = {event: number for number, event in enumerate(sorted({record.row.event for record in records}))}
    places = {region: number for number, region in enumerate(sorted(set(regions.values())))}
    features, rows = [], []
    for fitted, wanted in ((True, LEARNED), (False, JUDGED)):
        split = "train" if fitted else "val"
        for c, label in enumerate(LABELS):
            there = [r for r in records if r.row.split == split and r.row.label == label and _usable(r)]
            for record, view, length in _chosen(there, wanted, rng):
                window = view_windows(VIEWS[view], record, [LENGTHS_S[length]], bundle.preparation)
                features.append(network.of(window)[0])
                place = places.get(regions.get(record.row.event, ""), -1)
                rows.append((c, LENGTHS_S[length], numbers[record.row.event], place, fitted))
    labels, seconds, events, where, learned = (np.array(column) for column in zip(*rows, strict=True))
    return Replay(np.stack(features), labels, seconds, events, where, learned.astype(np.bool_), network.head)


def add_replay_bank(
    target: Path, bundle: Bundle, records: Sequence[Record], regions: Mapping[str, str], without: Sequence[str]
) -> int:
    """Write ``bundle`` with the replay bank of ``records`` to the folder ``target``; ``without`` are the data sets that
    its network did not learn from. Returns the number of examples."""
    bank = replay_bank(bundle, records, regions)
    add_replay(target, bundle, bank, without)
    return len(bank)


def _usable(record: Record) -> bool:
    return is_judged(record.row) and trust(record.row) == 1.0


def _chosen(records: Sequence[Record], wanted: int, rng: np.random.Generator) -> list[tuple[Record, int, int]]:
    """Records with a view and a length each: every event before any a second time, at most ``_EVENTS`` of a record."""
    by_event: dict[str, list[tuple[Record, int, int]]] = defaultdict(list)
    for record in records:
        for view in rng.permutation(len(VIEWS))[:_EVENTS]:
            # Half of them whole: what longer windows say counts most.
            length = len(LENGTHS_S) - 1 if rng.random() < 0.5 else int(rng.integers(len(LENGTHS_S) - 1))
            by_event[record.row.event].append((record, int(view), length))
    events = [by_event[event] for event in sorted(by_event)]
    for choices in events:
        rng.shuffle(choices)
    order = [(depth, rng.random(), choice) for choices in events for depth, choice in enumerate(choices)]
    order.sort(key=lambda entry: entry[:2])
    return [choice for _, _, choice in order[:wanted]]
