"""A replay shows what the station did, whatever the clocks of its recorder: the same events at the same times."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from pymseed import MS3Record
from stamps_support import T0, Stamping, records
from test_timeline import shaken

from agent.config.station import TriggerConfig
from agent.detect.pipeline import Pipeline
from agent.inference import load
from agent.service.assemble import DEFAULT_BUNDLE
from agent.sources.archive import ArchiveSource
from agent.sources.folder import FolderSource
from agent.types import NS, Event, SampleBlock

CLASSIFIER = load(DEFAULT_BUNDLE, ["constant:noise"])[0]
EVENTS_S = (45.0, 150.5, 260.25)
SECONDS = 300


def written(block: SampleBlock) -> bytes:
    """A record with the block's samples, time and rate."""
    out = MS3Record(reclen=512 if len(block.samples) <= 100 else 1 << 14, encoding=11)
    out.sourceid, out.formatversion = str(block.stream), 2
    out.starttime, out.samprate = block.start_ns, block.rate_hz
    with out.with_datasamples(np.asarray(block.samples, np.int32), "i"):
        (record,) = [bytes(piece) for piece in out.generate()]
    return record


def events(blocks: Iterable[SampleBlock], wanted: int) -> list[tuple[str, int, str, float]]:
    """Identifier, onset, phase and duration of every revision, from blocks that hold ``wanted`` samples."""
    pipeline, outputs = Pipeline(TriggerConfig(lta_s=20.0), (3.0, 10.0), CLASSIFIER), []
    for block in blocks:
        outputs += pipeline.feed(block)
        wanted -= len(block.samples)
        if wanted <= 0:
            break
    outputs += pipeline.flush()
    assert wanted == 0
    (counts,) = next(iter(pipeline.stations.values())).counts.values()
    assert (counts.gaps, counts.overlaps, counts.late) == (0, 0, 0)
    return [(e.id, e.onset_ns, e.phase, e.detection.duration_s) for e in outputs if isinstance(e, Event)]


@pytest.mark.parametrize(
    ("size", "stamping"),
    [
        (25, Stamping(jitter_s=0.01)),
        (100, Stamping(jitter_s=0.005, ppm=200)),
        (100, Stamping(round_s=0.1)),
        (400, Stamping(wobble=5e-3)),
        (400, Stamping(ppm=500)),
        (3000, Stamping(ppm=-500, wobble=2e-4)),
    ],
)
def test_a_replay_has_the_events_of_the_station_at_their_times(size: int, stamping: Stamping, tmp_path: Path) -> None:
    """Records read as they are written, as they lie in an archive, cut into seconds, and joined where they continue."""
    samples = shaken(100.0, SECONDS, EVENTS_S)
    path = tmp_path / "in" / "a.mseed"
    path.parent.mkdir()
    whole = [block for block in records(samples, 100.0, size, stamping) if block.stamps is None]
    starts = np.cumsum([0, *(size for _ in whole)])
    path.write_bytes(
        b"".join(
            written(SampleBlock(block.stream, block.start_ns, block.rate_hz, samples[at : at + size]))
            for block, at in zip(whole, starts.tolist(), strict=False)
        )
    )
    folder = FolderSource(
        [path.parent], tmp_path / "state", backlog_s=1e9, rescan_s=0.1, on_problem=lambda problem: None
    )
    live = events(folder.blocks(), len(samples))
    folder.close()
    for packet_s in (None, 1.0, 60.0):
        source = ArchiveSource([path], packet_s, on_problem=lambda problem: None)
        assert events(source.blocks(), len(samples)) == live
    onsets_s = sorted({(onset_ns - T0) / NS for _, onset_ns, _, _ in live})
    clean = events(records(samples, 100.0, size, Stamping()), len(samples))
    wanted = [stamping.true_s((onset_ns - T0) / NS) for onset_ns in sorted({onset_ns for _, onset_ns, _, _ in clean})]
    assert onsets_s == pytest.approx(wanted, abs=0.035 if stamping.round_s else 0.02)
