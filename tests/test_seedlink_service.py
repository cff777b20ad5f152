"""SeedLink through whole programs: ``talus run`` with a real broker, and ``talus doctor``."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import numpy as np
import obspy
import pytest
from agent_support import by_revision, expected, running_agent, talus, write_config, write_records
from broker_support import Collector, needs_mosquitto, running, wait_for
from pymseed import MS3Record
from seedlink_server import SeedLinkServer, authority, made
from seedlink_support import packets, streaming

from agent.config.sources import SeedLinkConfig
from agent.sources.seedlink.source import probe
from agent.types import NS

COPIES = 1


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), COPIES)


def as_sent(folder: Path, version: int) -> list[bytes]:
    """The records of a folder as a server sends them: each when its last sample is in."""
    sent = []
    for path in sorted(folder.iterdir()):
        (trace,) = obspy.read(str(path))
        net, sta, loc, cha = trace.id.split(".")
        name = f"FDSN:{net}_{sta}_{loc}_{'_'.join(cha)}"
        start_ns = trace.stats.starttime.ns
        sent += made(name, start_ns, trace.data, trace.stats.sampling_rate, version=version)
    return sorted(sent, key=lambda record: MS3Record.parse(record).endtime)


def section(server: SeedLinkServer, *stations: str, extra: str = "", more: str = "") -> str:
    wanted = ", ".join(f"{{station: '{name}', selectors: ['HH?']}}" for name in stations or ["XX_SLP"])
    return f"{{kind: seedlink, servers: [{{host: 127.0.0.1, port: {server.port}, stations: [{wanted}]{extra}}}]{more}}}"


@needs_mosquitto
@pytest.mark.parametrize(("protocol", "version"), [("3", 2), ("4", 3)])
def test_events_are_those_of_a_replay(tmp_path: Path, records: Path, protocol: str, version: int) -> None:
    """The same events, to the sample, although the server goes away in the middle; version 4 over TLS."""
    sent = as_sent(records, version)
    ca, tls = authority(tmp_path)
    secured = f", tls: {{ca_file: '{ca}'}}" if protocol == "4" else ""
    with (
        SeedLinkServer(tls=tls if secured else None) as server,
        running(tmp_path) as broker,
        Collector(broker.settings()) as collector,
    ):
        server.feed(sent[:1])
        server.number_from(1, forget=True)
        source = section(server, extra=f", protocol: {protocol}{secured}", more=", retry_s: 0.5")
        config = write_config(tmp_path, records, broker.port, source=source)
        with running_agent("run", "--config", config) as agent:
            streaming(server)
            server.feed(sent[: len(sent) // 2])
            wait_for(lambda: collector.bodies("/event"), what="the first event")
            server.stop()
            server.feed(sent[len(sent) // 2 :])
            server.start()
            last = expected(records)[-1]["id"]
            wait_for(lambda: any(body["id"] == last for body in collector.bodies("/event")), what="the last event")
            wait_for(lambda: any(h["streams"] for h in collector.bodies("/health")), what="health")
            agent.signal(signal.SIGTERM)
            assert agent.end() == 0, agent.log
        health = next(h for h in collector.bodies("/health") if h["streams"])
        assert by_revision(collector.bodies("/event")) == by_revision(list(expected(records)))
    assert [s["stream"][-1] for s in health["streams"]] == ["E", "N", "Z"]
    assert not any(s["stalled"] for s in health["streams"])


@needs_mosquitto
def test_silence_is_seen_in_health(tmp_path: Path, records: Path) -> None:
    """A station that stops is ``stalled``, one that never sent and a server that is gone are named."""
    sent = as_sent(records, 2)
    with SeedLinkServer() as server, running(tmp_path) as broker, Collector(broker.settings()) as collector:
        server.feed([*sent[:1], *packets(1, station="XX_MUTE")])
        server.number_from(1, forget=True)
        source = section(server, "XX_SLP", "XX_MUTE", more=", stalled_s: 2, retry_s: 0.5")
        config = write_config(tmp_path, records, broker.port, source=source)
        with running_agent("run", "--config", config):
            streaming(server)
            server.feed(sent[:30])
            bodies = collector.bodies
            wait_for(lambda: any(s["stalled"] for h in bodies("/health") for s in h["streams"]), what="stalled")
            wait_for(lambda: any("XX_MUTE" in str(h["reasons"]) for h in bodies("/health")), what="XX_MUTE")
            server.stop()
            wait_for(lambda: any("refuses connections" in str(h["reasons"]) for h in bodies("/health")), what="gone")
        assert bodies("/health")[-1]["status"] == "degraded"


# Doctor.


def config_of(server: SeedLinkServer, connect_timeout_s: float = 30.0, **changes: object) -> SeedLinkConfig:
    asked = {
        "host": "127.0.0.1",
        "port": server.port,
        "stations": [{"station": "XX_A", "selectors": ["HH?"]}],
        **changes,
    }
    return SeedLinkConfig.model_validate(
        {"kind": "seedlink", "servers": [asked], "connect_timeout_s": connect_timeout_s}
    )


@pytest.fixture
def live() -> SeedLinkServer:
    """A server that sends a packet of one second each time it is asked for what comes next."""

    class Live(SeedLinkServer):
        offset_s = 0.0

        def wait(self, timeout_s: float) -> None:
            if "END" in self.commands and len(self.held()) < 3:
                start_ns = time.time_ns() + round((self.offset_s - 1) * NS)
                self.feed(made("FDSN:XX_A_00_H_H_Z", start_ns, np.zeros(100)))
            super().wait(timeout_s)

    server = Live()
    server.feed(packets(1))
    return server


def test_doctor_sees_a_sound_server(live: SeedLinkServer) -> None:
    with live:
        first, second = probe(config_of(live), wait_s=60)
    assert first.well
    assert "SeedLink 4" in first.detail
    assert second.well
    assert "XX.A.00.HHZ at 100 Hz" in second.detail


@pytest.mark.parametrize(("offset_s", "words"), [(5.0, "ahead of this machine's clock"), (-5.0, "old when it comes")])
def test_doctor_sees_a_clock_that_is_off_by_five_seconds(live: SeedLinkServer, offset_s: float, words: str) -> None:
    live.offset_s = offset_s  # type: ignore[attr-defined]
    with live:
        _, freshness = probe(config_of(live), wait_s=60)
    assert not freshness.well
    assert words in freshness.detail
    assert "clock" in freshness.hint


def test_doctor_sees_what_is_refused_and_what_is_silent(live: SeedLinkServer) -> None:
    with SeedLinkServer() as server:
        server.feed(packets(1))
        wanted = [{"station": "XX_NONE"}, {"station": "XX_A", "selectors": ["!00HH?", "HHZ"]}]
        first, refused, silent = probe(config_of(server, stations=wanted), wait_s=0.5)
        assert first.well
        assert "refused 'STATION XX_NONE'" in refused.detail
        assert refused.hint.endswith("the server has XX_A")
        assert "XX_A has sent no samples" in silent.detail
        *_, bad = probe(config_of(server, protocol="3", stations=[{"station": "XX_A", "selectors": ["0_H_H_Z"]}]), 0.5)
        assert "no selector can be used" in bad.detail


def test_doctor_names_wrong_hosts_ports_and_certificates(tmp_path: Path) -> None:
    _, foreign = authority(tmp_path, "digitizer.example")
    with (
        SeedLinkServer(tls=foreign) as secured,
        SeedLinkServer() as plain,
        socket.create_server(("127.0.0.1", 0)) as deaf,
    ):
        closed = SeedLinkServer().start()
        closed.stop()
        port = deaf.getsockname()[1]
        cases: dict[str, dict[str, object]] = {
            "there is no host": {"host": "no-such-host.invalid"},
            "there is no host 'a..b'": {"host": "a..b"},
            "refuses connections": {"port": closed.port},
            "does not answer HELLO": {"port": port, "connect_timeout_s": 2.0},
            "certificate is not valid for '127.0.0.1'": {"port": secured.port, "tls": {"ca_file": tmp_path / "ca.pem"}},
            "does not speak TLS": {"port": plain.port, "tls": {}, "connect_timeout_s": 2.0},
        }
        for words, changes in cases.items():
            (freshness,) = probe(config_of(plain, **changes))  # type: ignore[arg-type]
            assert not freshness.well
            assert words in freshness.detail
            assert freshness.hint
    with socket.create_server(("127.0.0.1", 0)) as web:
        import threading

        def answer() -> None:
            connection, _ = web.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer).start()
        (freshness,) = probe(config_of(plain, port=web.getsockname()[1]))
    assert "not a SeedLink server" in freshness.detail


def test_doctor_as_a_program(tmp_path: Path, live: SeedLinkServer) -> None:
    with live:
        good = write_config(tmp_path / "good", "x", source=section(live, "XX_A"))
        _, out, _ = talus("doctor", "--config", good)
        assert "ok   source" in out
        assert "XX.A.00.HHZ" in out
    bad = write_config(tmp_path / "bad", "x", source=section(live, "XX_A"))
    status, out, _ = talus("doctor", "--config", bad)
    assert status == 1
    assert "refuses connections" in out
