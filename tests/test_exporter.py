"""The page for Prometheus: its format, and that no reader can hold anyone up."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
from broker_support import wait_for
from prometheus_client.parser import text_string_to_metric_families
from test_formats import state
from test_messages import health

from agent.config.outputs import HealthConfig
from agent.errors import TalusError
from agent.health.prometheus import CLIENTS, CONTENT_TYPE, Exporter, render
from agent.messages.schema import AlertCount, HearingHealth, RateHealth, RsamHealth, StageHealth

MOMENT = "2023-11-14T22:13:00.000000000Z"


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    exporter = Exporter("127.0.0.1", 0)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.stop()


def get(exporter: Exporter, path: str = "/metrics", method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()


def metrics(page: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Parsed by Prometheus' own library: samples by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(page.decode()):
        assert family.documentation, family.name
        assert family.type in ("gauge", "counter"), family.name
        for sample in family.samples:
            assert sample.name.startswith("talus_")
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), "a sample twice"
            found[sample.name][labels] = sample.value
    return found


def test_the_page_is_what_prometheus_reads() -> None:
    body = health().model_copy(
        update={
            "discards_hour": {'odd "name"\\\nwith\tall': 2},
            "temperatures_c": {"tj-thermal": 51.5},
            "power_w": {"VDD_IN": 4.1},
            "stages": [StageHealth(name="pipeline", alive=True, idle_s=0.3, waiting=2)],
            "rates": [RateHealth(station="XX.ABC.00.HH", label="landslide", per_hour=3, per_day=9, inverse_rate_h=1)],
            "rsam": [
                RsamHealth(station="XX.ABC.00.HH", minute=MOMENT, counts=12.5, coverage=1.0, hour_counts=11.0)
            ],
            "source": {"received": 5},
            "events_total": {"landslide": 4, "unclassified": 1},
            "alerts_total": [AlertCount(action="raise", label="landslide", count=2)],
            "discards_total": {"too_short": 6},
            "hearing": [HearingHealth(station="XX.ABC.00.HH", listening_in_s=None, armed_10min=0.25, armed_hour=0.9,
                                      threshold_counts=310, usual_counts=300, usual_hours=3.5, plausible=False)],
        }
    )  # fmt: skip
    found = metrics(render(body, state()))
    assert found["talus_ok"] == {(): 0.0}
    assert found["talus_outbox_messages"] == {(): 3.0}
    assert found["talus_stream_gaps_total"] == {(("stream", "FDSN:XX_ABC_00_H_H_Z"),): 1.0}
    assert found["talus_discards_last_hour"] == {(("reason", 'odd "name"\\\nwith\tall'),): 2.0}
    assert found["talus_event_rate_per_hour"] == {(("label", "landslide"), ("station", "XX.ABC.00.HH")): 3.0}
    sensor = (("station", "XX.ABC.00.HH"),)
    assert found["talus_hearing_armed_10min_ratio"] == {sensor: 0.25}
    assert found["talus_hearing_threshold_counts"] == {sensor: 310.0}
    assert found["talus_hearing_plausible"] == {sensor: 0.0}
    assert found["talus_status"][("status", "degraded"),] == 1.0
    events, alerts = found["talus_events_total"], found["talus_alerts_total"]
    assert (events[("label", "landslide"),], events[("label", "noise"),]) == (4.0, 0.0)
    assert alerts[("action", "raise"), ("label", "landslide")] == 2.0
    assert alerts[("action", "retract"), ("label", "landslide")] == 0.0
    assert found["talus_discards_total"] == {(("reason", "too_short"),): 6.0, (("reason", "too_many_open"),): 0.0}
    assert found["talus_rsam_counts"] == {(("station", "XX.ABC.00.HH"),): 12.5}
    assert found["talus_power_watts"] == {(("rail", "VDD_IN"),): 4.1}
    assert found["talus_stage_waiting"] == {(("stage", "pipeline"),): 2.0}
    assert found["talus_resident_memory_bytes"] == {(): 120e6}
    silent = body.model_copy(update={"outbox": None, "link": None, "rss_mb": None, "streams": []})
    assert not {"talus_outbox_messages", "talus_resident_memory_bytes"} & set(metrics(render(silent, state())))


def test_it_answers_metrics_and_nothing_else(exporter: Exporter) -> None:
    assert get(exporter)[0] == 503, "before the first report"
    page = render(health(), state())
    exporter.show(page)
    assert get(exporter) == (200, CONTENT_TYPE, page)
    assert get(exporter, "/metrics?x=1")[0] == 200
    assert get(exporter, method="HEAD") == (200, CONTENT_TYPE, b"")
    assert get(exporter, "/")[0] == 404
    assert get(exporter, "/../etc/passwd")[0] == 404
    assert get(exporter, method="POST")[0] == 405


def test_clients_that_say_nothing_hold_up_nobody(exporter: Exporter) -> None:
    """Ten times as many as there are places, each open; a page is had at once all the same, and they are shown out."""
    exporter.show(b"talus_ok 1\n")
    idle = [socket.create_connection(("127.0.0.1", exporter.port)) for _ in range(10 * CLIENTS)]
    assert get(exporter)[0] == 200
    for sock in idle:
        sock.settimeout(60)
    assert [sock.recv(1) for sock in idle] == [b""] * len(idle)
    for sock in idle:
        sock.close()


def test_a_reader_that_does_not_read_is_dropped(exporter: Exporter) -> None:
    exporter.show(b"x" * 20_000_000)
    slow = socket.create_connection(("127.0.0.1", exporter.port))
    slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    exporter.show(b"talus_ok 1\n")
    for _ in range(5):
        assert get(exporter)[2] == b"talus_ok 1\n"
    wait_for(lambda: not exporter._clients, what="it is dropped")
    slow.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\r\n\r\n",
        b"GET",
        b"\x16\x03\x01" + b"\x00" * 100,
        b"A" * 200_000,
        b"GET " * 2000,
        b"\xff\n\n",
    ],
)
def test_nonsense_is_refused_or_dropped_and_the_next_one_is_served(exporter: Exporter, request_: bytes) -> None:
    exporter.show(b"talus_ok 1\n")
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", exporter.port)) as sock:
        sock.sendall(request_)
        with contextlib.suppress(OSError):  # the server may have hung up by now
            sock.shutdown(socket.SHUT_WR)
        sock.settimeout(60)
        assert b"200 OK" not in sock.recv(100)
    assert get(exporter)[0] == 200


def test_many_readers_at_once(exporter: Exporter) -> None:
    exporter.show(b"talus_ok 1\n")
    done: list[int] = []

    def read() -> None:
        """Twenty pages; who has made room for a newer one asks again."""
        pages = 0
        while pages < 20:
            with contextlib.suppress(OSError, http.client.HTTPException):
                pages += get(exporter)[0] == 200
        done.append(pages)

    for _ in range(CLIENTS):
        threading.Thread(target=read, daemon=True).start()
    wait_for(lambda: len(done) == CLIENTS)
    assert get(exporter)[0] == 200


def test_a_port_that_is_taken_is_told(exporter: Exporter) -> None:
    with pytest.raises(TalusError, match=r"health\.prometheus"):
        Exporter("127.0.0.1", exporter.port)


@pytest.mark.parametrize("address", ["127.0.0.1:9464", "[::1]:9464", "localhost:9464", "127.1.2.3:80"])
def test_loopback_addresses_will_do(address: str) -> None:
    assert HealthConfig(prometheus=address).prometheus == address


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "[::]:9464", "192.168.1.2:9464", "example.org:9464"])
def test_others_must_be_meant(address: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        HealthConfig(prometheus=address)
    assert HealthConfig(prometheus=address, prometheus_remote=True)


@pytest.mark.parametrize("address", ["9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", ":9464", "http://x:1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="ADDRESS:PORT"):
        HealthConfig(prometheus=address, prometheus_remote=True)
