"""The desk asks the agent that has a record, also where the event is of a station without an agent of its own."""

from __future__ import annotations

import json
from pathlib import Path

from agent_support import running_agent, write_config
from broker_support import needs_mosquitto, running, wait_for
from control_support import control, key

from agent.config.broker import MqttSettings
from desk.evidence import Fetcher, Records
from desk.receive import Receiver
from desk.store.store import Store


@needs_mosquitto
def test_records_of_an_agents_other_stations_are_fetched(tmp_path: Path) -> None:
    signing = key(tmp_path)
    source = "{kind: simulator, speed: 20, stations: 2, rates: {slopequakes_per_hour: 900}}"
    with running(tmp_path) as broker:
        config = write_config(tmp_path / "site", "", broker.port, source=source, control=control(signing))
        store = Store(f"sqlite:///{tmp_path}/desk.db")
        settings = MqttSettings(host="127.0.0.1", port=broker.port)
        receiver = Receiver(settings, store, "desk")
        records = Records(tmp_path / "records", 10**9)
        fetcher = Fetcher(settings, store, records, signing, only_alerts=False)
        receiver.start()
        try:
            with running_agent("run", "--config", config):
                wait_for(lambda: fetcher.fetch_one(2**62), what="a record was offered and asked for")
                found = [json.dumps(str(path)) for path in (tmp_path / "records").rglob("*.mseed")]
        finally:
            receiver.stop()
    assert found, "the agent XX.SLP gave the record of XX.SLP01 or XX.SLP02"
    assert "XX.SLP0" in found[0]
