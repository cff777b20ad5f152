"""One night: a rockfall calls, nobody answers, the next one does; in the morning its label becomes training data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from agent_support import running_agent, write_config
from broker_support import needs_mosquitto, own_port, running, wait_for
from control_support import control, key
from desk_process_support import ROOT, DeskProcess, Phone, csrf, phone
from sqlalchemy import select

from agent.alert.evidence import encode
from agent.dsp.window import Preparation
from agent.sources.simulator import Scenario, SimulatedSite, SimulatorSource, station_ids, steady
from agent.types import LABELS, NS, Segment, StreamId
from desk.store import tables
from desk.store.store import Store
from quantize.data.records import read_table
from quantize.teach.site import read_site, site_windows

pytestmark = needs_mosquitto
SECONDS, SPEED = 2400.0, 20
"""Of records, and how fast the station plays them."""


def write_night(path: Path) -> Path:
    """Rockfalls of a simulated slope as records: what comes of a simulation itself is an exercise."""
    site = SimulatedSite(station_ids("XX", "SLP", 1, 100.0))
    begin_ns = time.time_ns() - 3600 * NS
    source = SimulatorSource(
        site, Scenario(5, steady({"rockfall": 120.0}), 1), 5, start_ns=begin_ns, seconds=SECONDS, speed=0
    )
    data: dict[StreamId, list[Segment]] = {}
    for block in source.blocks():
        data.setdefault(block.stream, []).append(Segment(block.start_ns, block.rate_hz, block.samples))
    joined = {
        stream: [Segment(runs[0].start_ns, runs[0].rate_hz, np.concatenate([run.samples for run in runs]))]
        for stream, runs in data.items()
    }
    path.write_bytes(encode(joined))
    return path


def messages(service: Phone, topic: str) -> list[dict[str, Any]]:
    """What the phone of one person shows, as ntfy has it."""
    found = [json.loads(told.body) for told in list(service.told) if told.body.startswith(b"{")]
    return [one for one in found if one["topic"] == topic]


def pictures(service: Phone) -> list[bytes]:
    return [told.body for told in list(service.told) if told.body[:4] == b"RIFF" and told.body[8:12] == b"WEBP"]


def unsaid(desk: DeskProcess, alert: str, target: str) -> list[str]:
    """Why one person was not told of an alert."""
    found, one, all_ = tables.notification.c, tables.alert.c, tables.notification.join(tables.alert)
    store = Store(f"sqlite:///{desk.folder}/state/desk.db")
    with store.reading() as connection:
        wanted = select(found.error).select_from(all_).where(one.uid == alert, found.target == target)
        errors = list(connection.execute(wanted).scalars())
    store.close()
    return errors


def test_a_rockfall_calls_until_someone_answers_and_its_label_is_training_data(tmp_path: Path) -> None:
    signing, port = key(tmp_path), own_port()
    with running(tmp_path) as broker, phone() as service:
        targets = [
            {"name": name, "url": f"ntfy://{service.host}/{name}", "wait_min": wait_min}
            for name, wait_min in (("ann", 0.1), ("ben", 60), ("chief", 60))
        ]
        desk = DeskProcess(
            tmp_path / "desk", broker, targets=targets, web={"port": port, "public_url": f"http://127.0.0.1:{port}"},
            evidence={"key": str(tmp_path / "key.pem"), "fetch": "alerts"}, late=True,
        )  # fmt: skip
        desk.account()
        night = write_night(tmp_path / "night.mseed")
        source = f"{{kind: archive, paths: ['{night}'], speed: {SPEED}, packet_s: 1}}"
        config = write_config(tmp_path / "site", "", broker.port, source=source, control=control(signing))
        try:
            desk.start()
            client = desk.client()
            with running_agent("run", "--config", config):
                wait_for(lambda: messages(service, "ann"), 120, "the first one is called")
                wait_for(lambda: messages(service, "ben"), what="nobody answers, so the next one is called")
                called = messages(service, "ben")[0]
                link = re.search(r"http://\S+/ack/\S+", called["message"])
                assert link is not None, called
                clicks = {told.headers.get("X-Click") for told in service.told}
                assert link[0] in clicks, "one tap on the notification, no login"
                page = httpx.get(link[0], timeout=60).text
                assert "it is mine" in page
                assert "Acknowledged by ben" in httpx.post(link[0], timeout=60).text
                wait_for(lambda: pictures(service), 120, "the picture of the event, once its record is here")
            alerts = client.get("/api/v1/alerts").json()["alerts"]
            (mine,) = [one for one in alerts if one["acked_by"] == "ben"]
            assert "acknowledged" in unsaid(desk, mine["id"], "chief"), "after an answer nobody else is called"
            assert not messages(service, "chief")
            assert all(len(picture) < 80_000 for picture in pictures(service))

            def recorded() -> list[str]:
                uids = [one["event"] for one in alerts]
                return [uid for uid in uids if client.get(f"/api/v1/events/{uid}/record.mseed").status_code == 200]

            wait_for(recorded, what="a record")
            uid = recorded()[0]
            was = client.get(f"/api/v1/events/{uid}").json()["event"]["class"]
            label = next(one for one in LABELS if one not in {was, "collapse"})
            answer = client.post("/api/v1/events/reviews", json={"events": [uid], "label": label}, headers=csrf(client))
            assert answer.json() == {"reviewed": 1}
            assert client.get(f"/api/v1/events/{uid}").json()["event"]["class"] == label
        finally:
            desk.stop()
    assert mine["waited_s"] is not None
    command = [sys.executable, "-m", "agent", "desk", "--config", tmp_path / "desk" / "desk.yaml"]
    command += ["--export", tmp_path / "labels"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = read_table(tmp_path / "labels")
    assert (row.label, row.event) == (label, uid)
    (row,) = read_site(tmp_path / "labels")
    assert row.label == label
    windows = site_windows([row], Preparation())
    assert len(windows.data)
