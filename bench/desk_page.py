"""Times of the desk's page of an event in Chromium, three components of 12,000 samples, and of its picture.

``python bench/desk_page.py``: median and largest of ten visits until all is drawn, and of drawing alone. The peer is
the page of the same event without a record: what Chromium and the desk cost by themselves.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.alert.evidence import encode
from agent.messages.schema import EventMessage
from agent.types import NS, Segment, StreamId, format_ns
from demo.screenshots import ARGUMENTS, DESKTOP, NAME, PASSWORD, log_in, served
from desk import accounts
from desk.evidence import Records
from desk.pictures.of_store import picture_of
from desk.store import tables
from desk.store.store import Arrival, Store

VISITS = 10
ONSET_NS = 1_772_323_200 * NS
IDS = ("XX.ONE.00.HH-20260301T000000.000Z", "XX.TWO.00.HH-20260301T000000.000Z")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        store, records = prepared(Path(folder))
        for name in ("first", "second"):
            began, used = time.perf_counter(), time.process_time()
            picture = picture_of(store, records, Path(folder) / name, IDS[0])
            took, used = time.perf_counter() - began, time.process_time() - used
            assert picture is not None
            size = picture.stat().st_size / 1000
            print(f"{name} picture {took:.2f} s, {used:.2f} s of the processor, {size:.0f} kB", flush=True)
        with served(store, records) as base:
            visits(base)
    return 0


def prepared(folder: Path) -> tuple[Store, Records]:
    """Two events, the first with a record of 120 s at 100 Hz and three components."""
    store, records = Store(f"sqlite:///{folder}/desk.db"), Records(folder / "evidence", 10**9)
    accounts.add_account(store, "bench", NAME, "admin", PASSWORD, now_ns=1)
    rng = np.random.default_rng(5)
    data = {}
    for name in "ENZ":
        samples = rng.normal(0, 80, 12_000)
        samples[2000:5000] += rng.normal(0, 6000, 3000) * np.exp(-np.arange(3000) / 900)
        data[StreamId.parse(f"FDSN:XX_ONE_00_H_H_{name}")] = [
            Segment(ONSET_NS - 20 * NS, 100.0, samples.astype(np.int32))
        ]
    records.keep(IDS[0], encode(data))
    for uid in IDS:
        store.ingest([Arrival(uid[:6], message(uid, revision), ONSET_NS) for revision in range(4)])
    with store.writing() as connection:
        connection.execute(tables.evidence.insert().values(event_id=1, state="here", bytes=1))
    return store, records


def message(uid: str, revision: int) -> EventMessage:
    """A revision of an event."""
    when = format_ns(ONSET_NS)
    shares = {"earthquake": 0.02, "blast": 0.02, "collapse": 0.02, "landslide": 0.92, "noise": 0.02}
    return EventMessage.model_validate({
        "schema": "talus/event/1", "id": uid, "revision": revision,
        "phase": ("new", "update", "update", "end")[revision], "station": uid.rpartition("-")[0], "onset": when,
        "reason": None, "quakeml_type": "landslide", "exercise": False,
        "detection": {"ratio": 9.0, "duration_s": 20.0, "peak_counts": 6000.0, "dominant_hz": 8.0},
        "classification": {"label": "landslide", "probability": 0.92, "probabilities": shares, "abstained": False,
                           "window_s": (3.0, 10.0, 40.0, 81.92)[revision], "backend": "onnxruntime",
                           "precision": "int8", "model": {"name": "bench", "sha256": "0" * 64}},
        "timing": {"data": when, "received": when, "decided": when, "handed": None},
        "quality": {"gap_s": 0.0, "components": "ENZ", "clock": None}, "boot_id": "0" * 16, "seq": revision,
    })  # fmt: skip


def visits(base: str) -> None:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or "chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
        log_in(page, base)
        for name, uid, ready in (
            ("with record", IDS[0], "#waveform[data-spectrogram]"),
            ("without", IDS[1], "#around canvas"),
        ):
            whole, drawing = [], []
            for _ in range(VISITS):
                began = time.perf_counter()
                page.goto(f"{base}/event/{uid}", wait_until="commit")
                page.wait_for_selector(ready, state="attached")
                whole.append(1000 * (time.perf_counter() - began))
                drawing.append(float(page.get_attribute("#waveform", "data-draw-ms") or "nan"))
            words = f"drawing {statistics.median(drawing):.0f}, at most {max(drawing):.0f} ms" if uid == IDS[0] else ""
            print(
                f"{name:<12} {statistics.median(whole):.0f} ms to the last pixel, at most {max(whole):.0f} ms; {words}"
            )
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
