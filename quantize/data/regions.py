"""Regions: where the events of a table lie. A station stands where training never was, so regions are left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError
from quantize.data.records import Row, read_csv

TABLE = "regions.csv"
LEAST = 15
"""Records of one class that make a region worth leaving out."""

UNLABELLED = {
    "uw_unlabelled": "cascadia",
    "rocknet_2020_088_13": "luhu",
    "msnoise_20100901_00_06": "reunion",
    "nuugaatsiaq_20170617": "greenland",
    "merapi_2001_292": "java",
    "merapi_2001_312": "java",
}
"""Region of records without a class, by source: they lend their noise to the generator."""


def read_regions(root: Path, rows: Sequence[Row]) -> dict[str, str]:
    """Region of every event of ``rows``, from ``root/regions.csv``.

    Raises:
        DataError: the table is missing, or does not name the region of an event.
    """
    table = root / TABLE
    if not table.is_file():
        raise DataError(f"{table} does not exist", "write the columns source_id, region: one line an event")
    found = {fields["source_id"]: fields["region"] for _, fields in read_csv(table, ("source_id", "region"))}
    missing = sorted({row.event for row in rows} - set(found))
    if missing:
        raise DataError(
            f"{table} names no region for {len(missing)} events, {missing[0]!r} among them", "add a line for each"
        )
    return found


def left_out(rows: Sequence[Row], regions: Mapping[str, str]) -> list[str]:
    """The regions with at least ``LEAST`` records of a class, the largest first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[regions[row.event]][row.label] += 1
    large = [region for region, by_label in counts.items() if max(by_label.values()) >= LEAST]
    return sorted(large, key=lambda region: (-counts[region].total(), region))


def numbers(rows: Sequence[Row], regions: Mapping[str, str]) -> NDArray[np.int64]:
    """Number of each row's region: those of ``left_out`` first, in its order; all others after them by name."""
    first = left_out(rows, regions)
    rest = sorted({regions[row.event] for row in rows} - set(first))
    place = {region: number for number, region in enumerate([*first, *rest])}
    return np.array([place[regions[row.event]] for row in rows], dtype=np.int64)
